"""A MIC of its own process beside objects that are nested as deeply as the API server stores them."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

import make
from daemons.kube.scripted import ScriptedServer, Watch
from daemons.kube.test_nested import BINDING, GROUP, IDENTITY, LEVELS, deep_custom, deep_pod
from serving import unused_port
from waiting import eventually


def environment(folder: Path) -> dict[str, str]:
    """Return MIC's variables; ARM is not there."""
    address = "http://127.0.0.1:9"
    cloud = {"name": "Own", "resourceManagerEndpoint": address, "activeDirectoryEndpoint": address}
    (folder / "cloud.json").write_text(json.dumps(cloud))
    return {
        "PATH": os.environ["PATH"],
        "MIC_POD_NAMESPACE": "default",
        "CLOUD": "AzureStackCloud",
        "AZURE_ENVIRONMENT_FILEPATH": str(folder / "cloud.json"),
        "TENANT_ID": "tenant",
        "CLIENT_ID": "mic",
        "CLIENT_SECRET": "secret",
        "SUBSCRIPTION_ID": make.SUBSCRIPTION,
        "RESOURCE_GROUP": make.GROUP,
    }


@pytest.mark.parametrize("levels", LEVELS)
async def test_a_mic_works_beside_nested_objects(levels: int, tmp_path: Path) -> None:
    """Deeply nested pods, listed at the start or watched later, get their assigned identities."""
    async with ScriptedServer.listening() as server:
        server.put("/api/v1/namespaces/team/pods/deep", deep_pod(levels))
        server.put("/api/v1/nodes/n1", {"metadata": {"name": "n1"}, "spec": {}})
        server.put(f"{GROUP}/azureidentities/reader", deep_custom(levels, IDENTITY, "reader"))
        server.put(f"{GROUP}/azureidentitybindings/reader", deep_custom(levels, BINDING, "reader"))
        flags = (
            f"--kubeconfig={server.write_kubeconfig(tmp_path)}",
            f"--http-probe-port={unused_port()}",
            f"--prometheus-port={unused_port()}",
        )
        command = (sys.executable, "-m", "podidentity", "mic", *flags)
        with (tmp_path / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*command, env=environment(tmp_path), stdout=log, stderr=log)
        try:
            await eventually(
                lambda: process.returncode is not None or has_assigned_identity(server, "deep"), "the first pod's"
            )
            watches_of(server)[-1].send_bytes(b'{"type":"ADDED","object":' + deep_pod(levels, "later") + b"}\n")
            await eventually(
                lambda: process.returncode is not None or has_assigned_identity(server, "later"), "the second's"
            )
            assert process.returncode is None, (tmp_path / "log").read_text()[-2000:]
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def has_assigned_identity(server: ScriptedServer, pod: str) -> bool:
    """Whether MIC created an assigned identity for a pod."""
    return any("/azureassignedidentities/" in path and path.split("/")[-1].startswith(pod) for path in server.objects)


def watches_of(server: ScriptedServer) -> list[Watch]:
    """Return the watches of pods."""
    return [watch for watch in server.watches if watch.request.path == "/api/v1/pods"]
