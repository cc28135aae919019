"""What the webhook injects for the token-file door fits the door that NMI serves: the same path, file and audience."""

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from azure.core.exceptions import AzureError
from azure.identity import ManagedIdentityCredential

from daemons.broker.harness import READER
from daemons.nmi.test_token_file import QUERY, Stage, stage
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop
from podidentity.core.exchange.callers import AUDIENCE
from podidentity.core.injection import mutation, rules, wishes
from podidentity.core.injection.rules import Rules, TokenFileDoor
from podidentity.core.injection.wishes import Wish
from podidentity.nmi.wiring import token_file_site

PORT = 2580


def admitted(*, host_network: bool, is_ipv6: bool = False) -> dict[str, Any]:
    """Return the spec of a labelled pod as the webhook leaves it: one that had workload identity's proxy."""
    settings = Rules("tenant", token_file=TokenFileDoor(PORT, is_ipv6=is_ipv6))
    wish = wishes.read_wish({rules.SIDECAR: "true"}, {rules.CLIENT_ID: READER}, "cart", settings)
    assert isinstance(wish, Wish)
    spec = {"hostNetwork": host_network, "containers": [{"name": "main", "image": "app"}]}
    operations = mutation.patch({"metadata": {"name": "web"}, "spec": spec}, wish, settings)
    return spec | {operation["path"].removeprefix("/spec/"): operation["value"] for operation in operations}


def environment(container: dict[str, Any], address: str = "192.168.77.10") -> dict[str, str]:
    """Return a container's variables as a kubelet sets them: it knows the node's address, and expands `$(NAME)`."""
    values: dict[str, str] = {}
    for item in container["env"]:
        text = address if "valueFrom" in item else item["value"]
        values[item["name"]] = re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], text)
    return values


async def first_answer(place: Stage, path: str) -> Any:
    """Send an SDK's first request, which has no proof."""
    client = await place.nmi.connect_to_token_file_door()
    try:
        return await client.ask(path + QUERY, "Metadata: true")
    finally:
        client.hang_up()


@pytest.mark.parametrize("host_network", [False, True], ids=["own network", "node's network"])
async def test_an_sdk_follows_what_the_webhook_injects_to_its_token(tmp_path: Path, *, host_network: bool) -> None:
    """The endpoint is NMI's, NMI asks for the file that is mounted, and a request with the pod's token is answered."""
    spec = admitted(host_network=host_network)
    (container,), (volume,) = spec["containers"], spec["volumes"]
    (mount,), (source,) = container["volumeMounts"], volume["projected"]["sources"]
    variables = environment(container)
    endpoint = urlsplit(variables["IDENTITY_ENDPOINT"])
    assert endpoint.netloc == f"192.168.77.10:{PORT}"
    assert "IMDS_ENDPOINT" in variables
    assert not {"IDENTITY_HEADER", "MSI_ENDPOINT", "AZURE_CLIENT_ID"} & variables.keys()
    assert source["serviceAccountToken"]["audience"] == AUDIENCE

    async with stage(tmp_path, host_network=host_network) as place:
        answer = await first_answer(place, endpoint.path)
        file = f"{mount['mountPath']}/{source['serviceAccountToken']['path']}"
        assert (answer.status, answer.headers["www-authenticate"]) == (401, f"Basic realm={file}")
        answer = await place.ask(endpoint.path + QUERY)
        assert answer.status == 200, answer.json
        assert answer.token.startswith(READER)


async def test_an_sdk_finds_the_door_at_an_ipv6_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is injected where nodes have IPv6 addresses leads Azure's SDK to NMI, which tells it where the proof is."""
    async with stage(tmp_path, ips=("::1",)) as place:
        port = await place.nmi.listener.listen("::1", 0, token_file_site(place.nmi.listener.app))
        (container,) = admitted(host_network=False, is_ipv6=True)["containers"]
        monkeypatch.setenv("NO_PROXY", "*")
        for name, text in environment(container, "::1").items():
            monkeypatch.setenv(name, text.replace(f"[::1]:{PORT}", f"[::1]:{port}"))
        with contextlib.suppress(FileNotFoundError, AzureError):  # the mount is not here
            await asyncio.to_thread(ManagedIdentityCredential().get_token, "https://vault.azure.net/.default")
    (line, *_) = (line for line in capfd.readouterr().err.splitlines() if "address=::1" in line)
    assert "ask again with the content of the file that WWW-Authenticate names" in line
