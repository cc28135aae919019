"""The lab's Azure behind real TLS on loopback, and clients that reach every host name there."""

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import uvicorn

from podidentity.lab.azure import Azure, AzureSettings

Send = Callable[..., httpx2.Response]


@pytest.fixture
def azure() -> Azure:
    """A fresh tenant whose PATCHes are quick."""
    made = Azure(AzureSettings())
    made.faults.patch_seconds = 0.05
    return made


@pytest.fixture
def served(azure: Azure) -> Iterator[int]:
    """The port on which all of its hosts are served."""
    config = uvicorn.Config(azure.app, port=0, proxy_headers=False, log_level="error", lifespan="off", ws="none")
    config.load()
    config.ssl = azure.tls_context()
    server = uvicorn.Server(config)
    started = threading.Event()
    ports: list[int] = []

    async def run() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0)
        ports.append(server.servers[0].sockets[0].getsockname()[1])
        started.set()
        await serving

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert started.wait(20)
    yield ports[0]
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def send(azure: Azure, served: int) -> Iterator[Send]:
    """Send a request to one of Azure's names: TLS and Host say the name, the connection goes to loopback."""
    trust = ssl.create_default_context(cadata=azure.ca_pem.decode())
    with httpx2.Client(verify=trust, trust_env=False, timeout=10) as http:

        def send(method: str, url: str, token: str = "", **given: Any) -> httpx2.Response:
            name = httpx2.URL(url).host
            headers = {
                "Host": name,
                **({"Authorization": f"Bearer {token}"} if token else {}),
                **given.pop("headers", {}),
            }
            local = httpx2.URL(url).copy_with(host="127.0.0.1", port=served)
            return http.request(method, local, headers=headers, extensions={"sni_hostname": name}, **given)

        yield send


@pytest.fixture
def sign_in(azure: Azure, send: Send) -> Callable[..., str]:
    """Get a token for the owner, or for another service principal."""

    def sign_in(scope: str, principal: Any = None) -> str:
        who = principal or azure.settings.owner
        form = {
            "grant_type": "client_credentials",
            "client_id": who.client_id,
            "client_secret": who.secret,
            "scope": scope,
        }
        url = f"https://login.microsoftonline.com/{azure.settings.tenant_id}/oauth2/v2.0/token"
        answer = send("POST", url, data=form)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    return sign_in
