"""The lab's Azure behind real TLS on loopback, and clients that reach every host name there."""

import ssl
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from daemons.lab_azure.management import SCOPE, Management
from podidentity_lab.azure import Azure, AzureSettings
from serving import served as served_at

Send = Callable[..., httpx2.Response]


@pytest.fixture
def azure() -> Azure:
    """A fresh tenant whose writes are quick."""
    made = Azure(AzureSettings())
    made.faults.patch_seconds = 0.05
    made.faults.federation_write_seconds = 0
    return made


@pytest.fixture
def served(azure: Azure) -> Iterator[int]:
    """The port on which all of Azure's hosts are served."""
    with served_at(azure.app, azure.tls_context()) as port:
        yield port


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


@pytest.fixture
def manage(azure: Azure, send: Send, sign_in: Callable[..., str]) -> Management:
    """ARM as the owner, with a resource group and a scale set."""
    azure.add_scale_set("ss", 2)
    made = Management(azure, send, sign_in(SCOPE))
    assert made("PUT", made.group, {"location": "eastus"}).status_code == 201
    return made


@pytest.fixture
def ask(send: Send, sign_in: Callable[..., str]) -> Callable[..., httpx2.Response]:
    """Return a function that sends requests to Graph as the owner."""
    token = sign_in("https://graph.microsoft.com/.default")

    def ask(method: str, path: str, body: Any = None) -> httpx2.Response:
        url = f"https://graph.microsoft.com/v1.0{path}"
        return send(method, url, token, **({} if body is None else {"json": body}))

    return ask
