"""What a newcomer gets wrong: one sentence that names it, with what to do, and before anything is asked or created."""

from pathlib import Path

import pytest
import trustme

from podidentity.cli import main as cli

NOBODY = {
    "KUBECONFIG": "",
    "KUBERNETES_SERVICE_HOST": "",
    "AZURE_TENANT_ID": "",
    "AZURE_CLIENT_ID": "",
    "AZURE_CLIENT_SECRET": "",
    "AZURE_CLIENT_CERTIFICATE_PATH": "",
    "HTTPS_PROXY": "http://127.0.0.1:1",
}
SIGN_IN = {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c"}
ACCOUNT = ("--service-account", "a/b")
ISSUER = ("--issuer", "https://issuer.example.com")
APP = ("--service-account-name", "app", "--azure-role", "Reader", "--azure-scope", "/subscriptions/s")


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine where nothing is set up: no cluster, no Azure, no network."""
    monkeypatch.chdir(tmp_path)
    for name, text in (NOBODY | {"HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, text)
    (tmp_path / "cert.pem").write_bytes(trustme.CA().cert_pem.bytes())
    (tmp_path / "empty").touch()
    return tmp_path


def sentence(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that fails; return its error, which is one line."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code not in {0, None}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("credential", "create"), "whose credentials is not clear; give either --identity or --application"),
        (("credential", "create", "--identity", "x"), "whom to trust is not clear; give either --service-account"),
        (("credential", "create", "--identity", "x", "--subject", "s"), "--name is missing"),
        (("credential", "create", "--identity", "x", "--service-account", "ab"), '"ab" is no service account'),
        (("credential", "create", "--identity", "x", "--service-account", "A B/!"), '"A B/!" is no service account'),
        (("credential", "create", "--identity", "x", "--service-account", "a.b/c"), '"a.b/c" is no service account'),
        (("credential", "create", "--identity", "x", *ACCOUNT), "no cluster to talk to"),
        (("jwks", "--public-keys", "cert.pem"), "it holds a certificate; give its public key: openssl x509"),
        (("jwks", "--public-keys", "empty"), "empty: no key in PEM; name a file with public keys"),
        (("issuer", "publish", "-d", "x", "--kubeconfig", "empty"), "kubeconfig empty: it is empty; name another file"),
        (("serviceaccount", "create", "--service-account-name", "A_b"), '"A_b" is no name of Kubernetes; use a to z'),
        (("serviceaccount", "create", *APP, "--service-account-namespace", "a.b"), '"a.b" is no name of Kubernetes'),
        (("serviceaccount", "create", *APP, "--service-account-token-expiration", "5m"), "is not from 1h to 24h"),
        (("serviceaccount", "create", *APP, "--service-account-token-expiration", "x"), "is not from 1h to 24h"),
    ],
)
def test_what_is_wrong_with_options_is_said_first(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither cluster nor Azure is asked for what can be seen on the command line."""
    assert message in sentence(capsys, *words)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (SIGN_IN | {"AZURE_CLIENT_SECRET": "s"}, "check the network and AZURE_TENANT_ID, AZURE_CLIENT_ID and"),
        (
            SIGN_IN | {"AZURE_CLIENT_CERTIFICATE_PATH": "gone.pfx"},
            "the certificate gone.pfx cannot be used: No such file or directory; correct AZURE_CLIENT_CERTIFICATE_PATH",
        ),
    ],
)
def test_a_sign_in_that_fails_names_its_variables(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever types a command has no azure.json: the variables are named that were used."""
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    error = sentence(capsys, "credential", "list", "--identity", "11111111-2222-3333-4444-555555555555")
    assert words in error
    assert "azure.json" not in error


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("client_secret", "AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_CLIENT_SECRET"),
        ("client_certificate", "AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_CLIENT_CERTIFICATE_PATH"),
    ],
)
def test_nobody_else_signs_in(method: str, names: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A method without what it needs is refused: az, and whoever is signed in there, is another's word."""
    (desk / "config").write_text(
        '{"clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],"users":[],'
        '"contexts":[{"name":"c","context":{"cluster":"c"}}],"current-context":"c"}'
    )
    words = ("serviceaccount", "create", *APP, "--auth-method", method, "--kubeconfig", "config")
    assert f"--auth-method {method}: it is not said who signs in; set {names}" in sentence(capsys, *words)
