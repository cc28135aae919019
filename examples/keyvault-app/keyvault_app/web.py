"""The web server: GET /keyvault answers the secret's value, GET /healthz says that the server runs.

Azure's libraries find the identity by themselves: nothing here knows who answers their request for a token.
"""

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from azure.core.exceptions import AzureError
from azure.identity import ManagedIdentityCredential
from azure.keyvault.secrets import SecretClient

from keyvault_app.settings import Settings

ReadSecret = Callable[[], str]


class Page(NamedTuple):
    """One answer, as plain text."""

    status: int
    text: str


def secret_reader(settings: Settings) -> ReadSecret:
    """A function that asks Key Vault for the secret's value on each call, and raises AzureError when refused."""
    credential = ManagedIdentityCredential(client_id=settings.client_id or None)
    client = SecretClient(settings.vault_url, credential)
    return lambda: client.get_secret(settings.secret, settings.version or None).value or ""


def page(path: str, read_secret: ReadSecret) -> Page:
    """What stands at `path`."""
    if path == "/healthz":
        return Page(200, "ok")
    if path != "/keyvault":
        return Page(404, "there are two pages here: /keyvault and /healthz")
    try:
        return Page(200, read_secret())
    except AzureError as error:
        # Further lines of the message are for developers of the library: status, headers, the same sentence again.
        return Page(502, str(error.message).partition("\n")[0])


def server(port: int, read_secret: ReadSecret) -> ThreadingHTTPServer:
    """A server on all addresses; one thread for each request."""

    class Pages(BaseHTTPRequestHandler):
        server_version = "keyvault-app"

        def do_GET(self) -> None:
            status, text = page(self.path, read_secret)
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is the base class's
            print(format % args, flush=True)

    return ThreadingHTTPServer(("", port), Pages)
