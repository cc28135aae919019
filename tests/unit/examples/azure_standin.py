"""A stand-in for IMDS and one Key Vault on loopback: real HTTP and TLS, reached through a CONNECT proxy.

The application's libraries believe that they talk to `*.vault.azure.net`; they accept the stand-in's own certificate.
"""

import datetime as dt
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

CHALLENGE = 'Bearer authorization="https://login.microsoftonline.com/tenant", resource="https://vault.azure.net"'
TOKEN = "token-of-the-pod"
TOKEN_ANSWER = {
    "access_token": TOKEN,
    "expires_in": "3600",
    "expires_on": "4102444800",
    "not_before": "0",
    "resource": "https://vault.azure.net",
    "token_type": "Bearer",
}


@dataclass
class Azure:
    """The stand-in's answers, and the requests that it got."""

    certificate: Path
    port: int = 0
    secrets: dict[str, str] = field(default_factory=dict)
    has_identity: bool = True
    asked: list[str] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Return the variables that lead Azure's libraries here."""
        here = f"http://127.0.0.1:{self.port}"
        return {
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": here,
            "HTTPS_PROXY": here,
            "NO_PROXY": "127.0.0.1",
            "REQUESTS_CA_BUNDLE": str(self.certificate),
        }


@contextmanager
def azure(directory: Path) -> Iterator[Azure]:
    """Serve a stand-in during the body; its certificate is in `directory`."""
    certificate, key = _certificate(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    standin = Azure(certificate)
    with ThreadingHTTPServer(("127.0.0.1", 0), _answering(standin, context)) as server:
        standin.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield standin
        finally:
            server.shutdown()
            thread.join()


class _Answers(BaseHTTPRequestHandler):
    azure: Azure
    tls: ssl.SSLContext
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def do_GET(self) -> None:
        self.azure.asked.append(self.path)
        url = urlsplit(self.path)
        if url.path == "/metadata/identity/oauth2/token":
            self._token(parse_qs(url.query))
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {}, {"WWW-Authenticate": CHALLENGE})
        else:
            self._secret(url.path)

    def _token(self, query: dict[str, list[str]]) -> None:
        asked_well = self.headers["Metadata"] == "true" and query.get("resource") == ["https://vault.azure.net"]
        if self.azure.has_identity and asked_well:
            self._answer(200, TOKEN_ANSWER)
        else:
            self._answer(400, {"error": "invalid_request", "error_description": "Identity not found"})

    def _secret(self, path: str) -> None:
        value = self.azure.secrets.get(path.removeprefix("/secrets/"))
        if value is None:
            self._answer(403, {"error": {"code": "Forbidden", "message": "The identity may not get this secret."}})
        else:
            self._answer(200, {"value": value, "id": f"https://keyvaultk8s.vault.azure.net{path}"})

    def _answer(self, status: int, answer: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
        del format, args


def _answering(standin: Azure, context: ssl.SSLContext) -> type[BaseHTTPRequestHandler]:
    return type("Answers", (_Answers,), {"azure": standin, "tls": context})


def _certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stand-in")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("*.vault.azure.net")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = directory / "certificate.pem", directory / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    private.write_bytes(secret)
    return pem, private
