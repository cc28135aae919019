"""`podidentity issuer` and `podidentity jwks`: files written, documents fetched over TLS, compared with a cluster."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from daemons.cli.published import ISSUER, Site, site
from podidentity_lab.kubernetes import Kubernetes

if TYPE_CHECKING:
    from daemons.cli.conftest import Run


@pytest.fixture
def published(kubernetes: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The cluster's issuer, published as it should be."""
    with site(kubernetes, tmp_path, monkeypatch) as content:
        yield content


def test_what_is_published_passes_the_check(
    published: Site, podidentity: "Run", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`issuer verify` accepts the files that `issuer publish` wrote, uploaded unchanged."""
    folder = tmp_path / "public"
    assert podidentity("issuer", "publish", "-d", str(folder)) == 0
    assert "az storage blob upload-batch" in capsys.readouterr().out
    published.documents = {
        f"/cluster/{path}": json.loads((folder / path).read_text())
        for path in (".well-known/openid-configuration", "openid/v1/jwks")
    }
    assert podidentity("issuer", "verify") == 0
    assert "all 1 keys of the API server are published" in capsys.readouterr().out


def test_another_issuer_needs_a_flag_of_the_api_server(
    kubernetes: Kubernetes, podidentity: "Run", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An address inside the cluster, as kind has it, is refused; a public one is published, with the flag to set."""
    assert kubernetes.admin_token
    assert podidentity("issuer", "publish", "-d", str(tmp_path)) == 2
    assert "is not public" in capsys.readouterr().err
    assert podidentity("issuer", "publish", "-d", str(tmp_path), "--issuer", ISSUER) == 0
    assert f"--service-account-issuer={ISSUER}" in capsys.readouterr().out
    configuration = json.loads((tmp_path / ".well-known/openid-configuration").read_text())
    assert configuration["jwks_uri"] == f"{ISSUER}/openid/v1/jwks"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"{ISSUER}/", "differs by the / at the end"),
        ("https://nowhere.example.com", "openid-configuration cannot be had"),
        ("http://issuer.example.com", "is no https address"),
    ],
)
def test_an_issuer_that_entra_would_refuse(
    published: Site, podidentity: "Run", capsys: pytest.CaptureFixture[str], url: str, words: str
) -> None:
    """The verification says what is wrong with such an issuer; exit status 1."""
    assert published.documents
    assert podidentity("issuer", "verify", url, "-o", "json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "IssuerVerification"
    assert words in " ".join(finding["what"] for finding in document["findings"])


@pytest.mark.parametrize("url", ["http://issuer.example.com", "https://[x", "https://x.example:99999", "https:///x"])
def test_an_address_that_no_issuer_has(
    published: Site, podidentity: "Run", capsys: pytest.CaptureFixture[str], url: str
) -> None:
    """It is named; nothing is fetched from there, and nobody is told to sign with it."""
    assert published.documents
    assert podidentity("issuer", "verify", url, "-o", "json") == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert "is no https address" in finding["what"] or "is no address" in finding["what"]
    assert url not in finding["todo"]


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public key of a pair as PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_key_set_of_files_verifies_tokens(
    kubernetes: Kubernetes, podidentity: "Run", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys from PEM files get the API server's key IDs, each is in the set once, and the set verifies a token."""
    file, output = tmp_path / "sa.pub", tmp_path / "out/jwks.json"
    other = rsa.generate_private_key(65537, 2048)
    file.write_bytes(kubernetes._authority.keys.public_pem() + pem(other))
    assert podidentity("jwks", "--public-keys", str(file), "--public-keys", str(file), "-f", str(output)) == 0
    keys = json.loads(output.read_text())["keys"]
    token = kubernetes.service_account_token("default", "default", {})
    kid = jwt.get_unverified_header(token)["kid"]
    assert keys[0]["kid"] == kid
    assert len(keys) == 2
    verified = jwt.PyJWKSet.from_dict({"keys": keys})[kid]
    options = {"verify_aud": False}
    assert jwt.decode(token, verified.key, ["RS256"], options=options)["sub"].endswith("default")  # type: ignore[arg-type]  # a part of the options
    assert podidentity("jwks", "--public-keys", str(file)) == 0
    assert json.loads(capsys.readouterr().out) == {"keys": keys}
    assert podidentity("issuer", "publish", "-d", str(tmp_path), "--public-keys", str(file)) == 2
    assert "--issuer: with --public-keys the issuer is not known" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["none", "private", "curve", "broken", "missing", "nothing"])
def test_keys_that_cannot_be_published(
    podidentity: "Run", tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    """Each of them is refused with one sentence; a private key is never accepted."""
    private = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    broken = b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
    texts = {
        "none": b"text",
        "private": private,
        "curve": pem(ec.generate_private_key(ec.SECP256R1())),
        "broken": broken,
    }
    words = {
        "none": "no key in PEM",
        "private": "holds a private key",
        "curve": "is not RSA",
        "broken": "cannot be read",
        "missing": "No such file",
        "nothing": "--public-keys is missing",
    }
    file = tmp_path / "keys.pem"
    if content in texts:
        file.write_bytes(texts[content])
    arguments = [] if content == "nothing" else ["--public-keys", str(file)]
    assert podidentity("jwks", *arguments) == 2
    error = capsys.readouterr().err
    assert words[content] in error
    assert len(error.splitlines()) == 1
