"""Unmodified managed identity SDKs in four languages, each in a new and an old version, by both doors of NMI.

NMI and the broker are those of tests/daemons, on real sockets of this process; the SDKs are programs that know nothing
of either. The token's file is where it is in a pod: each program has a mount namespace of its own.
"""

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import make
from daemons.broker.harness import READER
from daemons.nmi import test_token_file as door
from interop.managed.programs import SDKS, Sdk
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop

MOUNT = """
mount -t tmpfs tmpfs /var/opt && mkdir -p /var/opt/azcmagent/tokens || exit 90
cp "$PROOF" /var/opt/azcmagent/tokens/podidentity.key && exec "$@"
"""
SECONDS = 200.0  # the JVM on a machine that is busy with everything else


async def run(sdk: Sdk, directory: Path, proof: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a program in its own mount namespace, with the proof where a pod has it; return its answers."""
    words = ("unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c", MOUNT, "sh", *sdk.command(directory))
    variables = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PROOF": str(proof), **environment}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, cwd=directory, env=variables, stdout=pipe, stderr=pipe)
    output, errors = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 0, errors.decode()[-3000:]
    answers: dict[str, Any] = json.loads(output)
    return answers


@pytest.mark.timeout(900)
@pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: f"{sdk.title}-{sdk.version}".replace(" ", "-"))
async def test_an_unmodified_program_gets_its_token_by_both_doors(
    tmp_path: Path, client: Callable[[str], Path], sdk: Sdk
) -> None:
    """Both credentials of the SDK get the pod's token, with nothing but the pod's environment."""
    directory, proof = client(sdk.client), tmp_path / "proof"

    async with door.stage(tmp_path) as at:
        proof.write_text(at.token)
        address = f"http://127.0.0.1:{at.nmi.token_file_port}"
        environment = {"IDENTITY_ENDPOINT": f"{address}/token-file/{READER}", "IMDS_ENDPOINT": address}
        answers = await run(sdk, directory, proof, environment)
        owners = {name: answer.get("token", "")[: len(READER)] for name, answer in answers.items()}
        assert owners == {"managed": READER, "default": READER}, answers
        if sdk.is_newest:
            answers = await run(sdk, directory, proof, {**environment, "SELECTOR": READER})
            assert answers["managed"].get("token", "").startswith(READER), answers
        at.nmi.cluster.assign(at.pod, make.identity(type=3, client_id=READER))
        if "Go" not in sdk.title:  # it asks 169.254.169.254 whatever the variable says: interop/sdks
            metadata = {"AZURE_POD_IDENTITY_AUTHORITY_HOST": f"http://127.0.0.1:{at.nmi.port}"}
            answers = await run(sdk, directory, proof, metadata)
            owners = {name: answer.get("token", "")[: len(READER)] for name, answer in answers.items()}
            assert owners == {"managed": READER, "default": READER}, answers
        assert at.nmi.imds.requests == []
