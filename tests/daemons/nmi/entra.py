"""A stand-in for Entra ID on a real TLS socket: checks secrets and assertions, and gives tokens with telling names."""

import hashlib
import json
import ssl
import threading
from base64 import b64decode, urlsafe_b64encode
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

NOT_KNOWN = {"error": "invalid_request", "error_description": "AADSTS90002: Tenant not found.\r\nTrace ID: 1"}
BAD_SECRET = {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}


class Reply(NamedTuple):
    """An answer that a test prescribes in place of a token."""

    status: int
    body: bytes = b"{}"
    headers: dict[str, str] = {}  # noqa: RUF012  # never changed


class StandInEntra:
    """Applications by client ID: the secret, or the certificate, with which each proves who it is."""

    def __init__(self) -> None:
        self.port = 0
        self.applications: dict[str, str | x509.Certificate] = {}
        self.tenants = {"tenant-1", "tenant-2", "tenant-3"}
        self.requests: list[str] = []
        self.forms: list[dict[str, str]] = []
        self.script: deque[Reply] = deque()
        self.issued = 0

    @property
    def login(self) -> str:
        """Its address, as an AzureIdentity's `adEndpoint`."""
        return f"https://localhost:{self.port}"

    @contextmanager
    def listening(self, certificate: Path) -> Iterator["StandInEntra"]:
        """Serve in a thread; `certificate` is a PEM file with key and certificate for localhost."""
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(stand_in.discover(self.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self._say(stand_in.grant(self.path, {name: values[0] for name, values in parse_qs(body).items()}))

            def _say(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)

    def discover(self, path: str) -> Reply:
        """Answer a tenant's openid-configuration."""
        self.requests.append(f"GET {path}")
        tenant = path.split("/")[1]
        if tenant not in self.tenants:
            return _reply(400, NOT_KNOWN)
        base = f"{self.login}/{tenant}"
        ends = {"token_endpoint": "oauth2/v2.0/token", "authorization_endpoint": "oauth2/v2.0/authorize"}
        return _reply(200, {name: f"{base}/{end}" for name, end in ends.items()} | {"issuer": f"{base}/v2.0"})

    def grant(self, path: str, form: dict[str, str]) -> Reply:
        """Answer a token request."""
        self.requests.append(f"POST {path}")
        self.forms.append(form)
        if self.script:
            return self.script.popleft()
        if not self._has_proof(form, f"{self.login}{path}"):
            return _reply(401, BAD_SECRET)
        self.issued += 1
        text = f"token of {form['client_id']} in {path.split('/')[1]} for {form['scope']} no {self.issued}"
        return _reply(200, {"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": text})

    def _has_proof(self, form: dict[str, str], audience: str) -> bool:
        credential = self.applications.get(form["client_id"])
        if isinstance(credential, x509.Certificate):
            return _signed_with(credential, form, audience)
        return credential is not None and form.get("client_secret") == credential


def _signed_with(certificate: x509.Certificate, form: dict[str, str], audience: str) -> bool:
    """Check an assertion as Entra ID does: PS256, the certificate's SHA-256 thumbprint, issuer, subject, audience."""
    assertion = form["client_assertion"]
    header = jwt.get_unverified_header(assertion)
    der = b64decode(header["x5c"][0])
    thumbprint = urlsafe_b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")
    key = certificate.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    try:
        claims = jwt.decode(assertion, key, ["PS256"], audience=audience)
    except jwt.InvalidTokenError:
        return False
    return claims["iss"] == claims["sub"] == form["client_id"] and str(header["x5t#S256"]).rstrip("=") == thumbprint


def _reply(status: int, body: dict[str, Any]) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})
