"""The lab's certificates are accepted by strict clients, as Python is by default since 3.13."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from podidentity_lab.azure.tls import Authority
from podidentity_lab.kubernetes import kubernetes
from podidentity_lab.real import pki

Server = tuple[bytes, ssl.SSLContext]
"""The root's certificate, and a server's side."""


def embedded(folder: Path) -> Server:
    """Return the embedded Kubernetes API."""
    root, server = kubernetes._certificates()
    return root, loaded(folder / "server.pem", server)


def real(folder: Path) -> Server:
    """Return a real kube-apiserver."""
    keys = pki.make(folder / "pki", ["node-0"])
    return keys.ca_pem, loaded(
        folder / "server.pem", (folder / "pki/api.key").read_bytes() + (folder / "pki/api.crt").read_bytes()
    )


def azure(_: Path) -> Server:
    """Return the lab's Azure."""
    authority = Authority({})
    return authority.pem, authority.context("localhost")


def loaded(file: Path, pem: bytes) -> ssl.SSLContext:
    """Return a server's side with this key and certificate."""
    file.write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@pytest.mark.parametrize("server", [embedded, real, azure])
def test_a_strict_client_trusts_it(server: Callable[[Path], Server], tmp_path: Path) -> None:
    """A strict client trusts each server: the authority states that its key signs certificates (RFC 5280)."""
    root, context = server(tmp_path)
    strict = ssl.create_default_context(cadata=root.decode())
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        strict.wrap_bio(to_client, to_server, server_hostname="localhost"),
        context.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(3):  # two round trips, and the client's last word
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert [end.cipher() is not None for end in ends] == [True, True]
