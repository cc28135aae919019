"""Service principals: tokens from Entra ID with Secrets and certificates, through NMI's own sockets."""

import asyncio
import datetime as dt
import importlib
import ipaddress
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs12

import make
from daemons.nmi.entra import Reply, StandInEntra
from daemons.nmi.harness import TARGET, Serving, pod, serving
from podidentity.azure.entra import GrantedToken
from podidentity.core.model.identities import AzureIdentity, SecretReference
from podidentity.errors import ForbiddenError, UnreachableError
from podidentity.nmi.settings import Settings

SECRET = SecretReference("default", "sp")
PASSWORD = "correct horse"


@dataclass(frozen=True)
class Pair:
    """A key and its certificate."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate

    def archive(self, password: str = "") -> bytes:
        """Return key and certificate as a PKCS#12 archive."""
        lock = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        return pkcs12.serialize_key_and_certificates(b"sp", self.key, self.certificate, None, lock)

    def pem(self) -> bytes:
        """Return key and certificate as PEM."""
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        key = self.key.private_bytes(serialization.Encoding.PEM, *form)
        return key + self.certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module", autouse=True)
def load_msal() -> None:
    """Import what the first token needs, so that no test's time limit includes it on a busy machine."""
    for name in ("msal.application", "jwt", "cryptography.hazmat.primitives.serialization.pkcs12"):
        importlib.import_module(name)


def make_pair() -> Pair:
    """Make a self-signed certificate: Entra's for localhost, and the application's own."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(key, certificate)


@pytest.fixture(scope="module")
def pair() -> Pair:
    """A pair for all tests here."""
    return make_pair()


@pytest.fixture
def entra(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInEntra]:
    """A running Entra ID that the daemon's TLS trusts, as a custom cloud's is trusted."""
    file = tmp_path / "entra.pem"
    file.write_bytes(pair.pem())
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with StandInEntra().listening(file) as listening:
        listening.applications["app"] = PASSWORD
        yield listening


def principal(entra: StandInEntra, **fields: object) -> AzureIdentity:
    """Build an AzureIdentity of type 1 that lives at the stand-in."""
    values: dict[str, object] = {
        "type": 1,
        "resource_id": "",
        "client_id": "app",
        "tenant_id": "tenant-1",
        "client_password": SECRET,
        "ad_endpoint": entra.login + "/",
    }
    return make.identity(**values | fields)  # type: ignore[arg-type]  # any field


@asynccontextmanager
async def signing_in(entra: StandInEntra, **fields: object) -> AsyncIterator[Serving]:
    """Run NMI with the stand-in as its custom cloud; `fields` are further settings."""
    values = {"logins": frozenset({entra.login}), **fields}
    async with serving(Settings("n1", **values)) as nmi:  # type: ignore[arg-type]  # any setting
        nmi.cluster.secrets[SECRET] = {"clientSecret": PASSWORD.encode()}
        yield nmi


async def test_entras_words_are_bounded(entra: StandInEntra) -> None:
    """An error of Entra ID that is 100,000 characters long is cut before it is passed on to a pod."""
    async with signing_in(entra) as nmi:
        nmi.cluster.add(pod(), principal(entra))
        error = {"error": "x" * 100_000, "error_description": "AADSTS1: " + "y" * 100_000}
        entra.script.extend([Reply(400, json.dumps(error).encode())] * 2)
        answer = await nmi.ask()
        assert answer.status == 403
        assert answer.json["error_description"].startswith("AADSTS1: yyy")
        assert len(answer.body) < 2000


async def test_a_secret_gets_a_token(entra: StandInEntra) -> None:
    """An identity of type 1 costs the tenant's configuration and one POST; the scope has the resource as requested."""
    async with signing_in(entra) as nmi:
        nmi.cluster.add(pod(), principal(entra))
        answer = await nmi.ask(TARGET.replace("vault.azure.net", "management.azure.com/"))
        assert answer.status == 200
        assert answer.token == "token of app in tenant-1 for https://management.azure.com//.default no 1"
        now = int(nmi.clock.wall())
        assert answer.json == {
            "access_token": answer.token,
            "refresh_token": "",
            "expires_in": "3599",
            "expires_on": str(now + 3599),
            "not_before": str(now),
            "resource": "https://management.azure.com/",
            "token_type": "Bearer",
        }
        assert entra.requests == [
            "GET /tenant-1/v2.0/.well-known/openid-configuration",
            "POST /tenant-1/oauth2/v2.0/token",
        ]
        assert nmi.imds.requests == []


@pytest.mark.parametrize(
    "keys",
    [{"anything": PASSWORD.encode()}, {"b": b"no", "a": PASSWORD.encode()}, {"x": PASSWORD.encode() + b"\n"}],
    ids=["any-key", "first-of-several", "line-end"],
)
async def test_any_one_key_of_the_secret_holds_it(entra: StandInEntra, keys: dict[str, bytes]) -> None:
    """The Secret's key may have any name: upstream takes whichever comes, NMI the first by name."""
    async with signing_in(entra) as nmi:
        nmi.cluster.secrets[SECRET] = keys
        nmi.cluster.add(pod(), principal(entra))
        assert (await nmi.ask()).status == 200


@pytest.mark.parametrize("password", ["", "open sesame"], ids=["unlocked", "locked"])
async def test_a_certificate_gets_a_token(entra: StandInEntra, pair: Pair, password: str) -> None:
    """For an identity of type 2 the assertion is signed with the archive's key, and Entra ID checks it."""
    async with signing_in(entra) as nmi:
        entra.applications["app"] = pair.certificate
        nmi.cluster.secrets[SECRET] = {"certificate": pair.archive(password), "password": password.encode()}
        nmi.cluster.add(pod(), principal(entra, type=2))
        answer = await nmi.ask()
        assert (answer.status, answer.token[:24]) == (200, "token of app in tenant-1")
        assert "client_secret" not in entra.forms[0]


async def test_auxiliary_tenants_make_an_array(entra: StandInEntra) -> None:
    """The answer has one token for each tenant, the primary one's first; a second answer comes from the cache."""
    async with signing_in(entra) as nmi:
        nmi.cluster.add(pod(), principal(entra, auxiliary_tenant_ids=("tenant-3", "tenant-2")))
        for _ in range(2):
            tokens = (await nmi.ask()).json
            assert [token["access_token"].split(" ")[4] for token in tokens] == ["tenant-1", "tenant-3", "tenant-2"]
        assert entra.issued == 3


async def test_the_nodes_programs_get_the_primary_tenants_token(
    entra: StandInEntra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/host/token answers with one token, so an identity with auxiliary tenants gives the primary tenant's."""
    monkeypatch.setattr("podidentity.nmi.adapters.peers.owner_of", AsyncMock(return_value=0))

    async with signing_in(entra, host_token_loopback=True) as nmi:
        nmi.cluster.add(pod(), principal(entra, auxiliary_tenant_ids=("tenant-2",)))
        client = await nmi.connect_as_node()
        answer = await client.ask("/host/token?resource=r", "podname: web", "podns: default")
        assert answer.json["token"]["access_token"].startswith("token of app in tenant-1 ")
        assert answer.json["clientid"] == "app"


async def test_tenants_do_not_share_tokens(entra: StandInEntra) -> None:
    """The cache keeps tokens of one application in two tenants apart."""
    async with signing_in(entra) as nmi:
        nmi.cluster.add(web := pod(), principal(entra))
        assert " in tenant-1 " in (await nmi.ask()).token
        nmi.cluster.assign(web, principal(entra, tenant_id="tenant-2"))
        assert " in tenant-2 " in (await nmi.ask()).token


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"client_id": "other"}, 403, "AADSTS7000215: Invalid client secret provided."),
        ({"tenant_id": "unknown"}, 403, "AADSTS90002: Tenant not found. Trace ID: 1"),
        ({"client_password": SecretReference("default", "none")}, 503, "get secrets default/none: not found"),
        ({"client_password": None}, 503, "lacks clientPassword"),
        ({"type": 2}, 503, 'Secret default/sp has no key "certificate"'),
        ({"type": 5}, 503, "has type 5; 0, 1 and 2 are known"),
        ({"tenant_id": "../x"}, 503, 'tenant "../x" is neither an ID nor a domain'),
        ({"ad_endpoint": "https://login.microsoftonline.com.evil.example/"}, 503, "is no known cloud's"),
        ({"client_password": SecretReference("kube-system", "sp")}, 503, "of another namespace"),
        (
            {"client_password": SecretReference("default", "../../kube-system/secrets/sp")},
            503,
            "is no name of a Secret",
        ),
    ],
)
async def test_what_is_wrong_is_told(entra: StandInEntra, fields: dict[str, object], status: int, message: str) -> None:
    """A refusal by Entra ID is 403 in its words; a mistake in the identity or its Secret is 503 with what is wrong."""
    async with signing_in(entra) as nmi:
        nmi.cluster.secrets[SecretReference("kube-system", "sp")] = {"x": PASSWORD.encode()}
        nmi.cluster.add(pod(), principal(entra, **fields))
        answer = await nmi.ask()
        assert answer.status == status
        assert message in answer.json["error_description"]
        assert PASSWORD not in answer.body.decode()


@pytest.mark.parametrize("password", ["wrong", ""])
async def test_a_locked_archive_is_a_sentence(entra: StandInEntra, pair: Pair, password: str) -> None:
    """An archive with a wrong password, or garbage, gets 503, and no token request is sent to Entra ID."""
    async with signing_in(entra) as nmi:
        archive = pair.archive("right") if password else b"garbage"
        nmi.cluster.secrets[SECRET] = {"certificate": archive, "password": password.encode()}
        nmi.cluster.add(pod(), principal(entra, type=2))
        answer = await nmi.ask()
        assert answer.status == 503
        assert "Secret default/sp: it is no PKCS#12 archive, or its password" in answer.json["error_description"]
        assert entra.forms == []


async def test_a_foreign_secret_is_refused_before_the_cache(entra: StandInEntra) -> None:
    """An identity that names another namespace's Secret gets no token, not even a cached one."""
    async with signing_in(entra) as nmi:
        nmi.cluster.add(web := pod(), principal(entra))
        assert (await nmi.ask()).status == 200
        nmi.cluster.assigned_identities.clear()
        nmi.cluster.assign(web, replace(principal(entra), key=make.identity("thief", "team-b").key))
        answer = await nmi.ask()
        assert answer.status == 503
        assert "--secret-namespaces=default" in answer.json["error_description"]


async def test_secret_namespaces_allow_it(entra: StandInEntra) -> None:
    """With --secret-namespaces an identity may also use a Secret of the namespaces in that list."""
    async with signing_in(entra, secret_namespaces=frozenset({"default"})) as nmi:
        nmi.cluster.add(pod(), replace(principal(entra), key=make.identity("sharer", "team-b").key))
        assert (await nmi.ask()).status == 200


@pytest.mark.parametrize(
    ("replies", "status", "posts"),
    [
        ([Reply(503), Reply(500)], 200, 3),
        ([Reply(429, headers={"Retry-After": "3"})], 200, 2),
        ([Reply(500)] * 4, 503, 4),
        ([Reply(200, b"{}")] * 4, 503, 4),
        ([Reply(200, b"<html>")] * 4, 503, 4),
        ([Reply(400, b'{"error":"invalid_scope","error_description":"AADSTS70011"}')], 403, 1),
    ],
    ids=["5xx", "429", "5xx-for-good", "no-token", "no-json", "400"],
)
async def test_entras_failures(entra: StandInEntra, replies: list[Reply], status: int, posts: int) -> None:
    """Failures that may pass are tried again; refusals are reported at once."""
    async with signing_in(entra) as nmi:
        nmi.cluster.add(pod(), principal(entra))
        entra.script.extend(replies)
        assert (await nmi.ask()).status == status
        assert len(entra.forms) == posts


async def test_a_changed_secret_drops_its_tokens(entra: StandInEntra) -> None:
    """Within seconds the Secret is read again before its cached token is given; if it changed, the token is dropped."""
    async with signing_in(entra) as nmi:
        nmi.cluster.add(pod(), principal(entra))
        assert (await nmi.ask()).token.endswith("no 1")
        nmi.clock.jump(6)
        assert (await nmi.ask()).token.endswith("no 1")
        assert nmi.cluster.secret_reads == 2
        entra.applications["app"] = "rotated"
        nmi.cluster.secrets[SECRET] = {"clientSecret": b"rotated"}
        nmi.clock.jump(6)
        assert (await nmi.ask()).token.endswith("no 2")


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(None, 503), (ForbiddenError("get secrets default/sp: forbidden", status=403), 503), (UnreachableError("x"), 200)],
    ids=["gone", "forbidden", "api-away"],
)
async def test_a_secret_that_goes_takes_its_tokens_along(
    entra: StandInEntra, outcome: Exception | None, status: int
) -> None:
    """A Secret that is gone or may not be read ends its cached tokens; while the API server is away they are given."""
    async with signing_in(entra) as nmi:
        nmi.cluster.add(pod(), principal(entra))
        assert (await nmi.ask()).status == 200
        if outcome is None:
            del nmi.cluster.secrets[SECRET]
        else:
            nmi.cluster.secrets[SECRET] = outcome
        nmi.clock.jump(6)
        assert [(await nmi.ask()).status for _ in range(3)] == [status] * 3
        assert nmi.cluster.secret_reads <= 3


async def test_many_first_requests_are_one_call(entra: StandInEntra) -> None:
    """Many first requests for one service principal cost one call to Entra ID and one read of the Secret."""
    async with signing_in(entra) as nmi:
        nmi.cluster.add(pod(), principal(entra))
        answers = await asyncio.gather(*(nmi.ask() for _ in range(50)))
        assert {answer.token for answer in answers} == {answers[0].token}
        assert (entra.issued, nmi.cluster.secret_reads) == (1, 1)


async def test_calls_that_hang_hold_up_nothing_else(entra: StandInEntra, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls to Entra ID that hang block no other work that needs a thread, such as running nft."""
    go_on = threading.Event()
    was_asked = threading.Event()

    def hang(*_: object) -> GrantedToken:
        was_asked.set()
        assert go_on.wait(60)
        return GrantedToken("late", 3600)

    monkeypatch.setattr("podidentity.azure.entra._ask", hang)

    async with signing_in(entra) as nmi:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        nmi.cluster.add(pod(), principal(entra))
        asking = asyncio.create_task(nmi.ask())
        try:
            while not was_asked.is_set():  # noqa: ASYNC110  # another thread sets it
                await asyncio.sleep(0)
            async with asyncio.timeout(20):
                assert await asyncio.to_thread(lambda: "done") == "done"
        finally:
            go_on.set()
        assert (await asking).token == "late"  # no secret


async def test_without_the_cache_each_request_is_a_call(entra: StandInEntra) -> None:
    """With --token-cache=false each request reads the Secret and gets a new token."""
    async with signing_in(entra, token_cache=False) as nmi:
        nmi.cluster.add(pod(), principal(entra))
        assert len({(await nmi.ask()).token for _ in range(2)}) == 2
        assert nmi.cluster.secret_reads == 2


async def test_a_secret_never_shows(entra: StandInEntra, capfd: pytest.CaptureFixture[str]) -> None:
    """The audit line has no secret, and it shortens the client ID even inside Entra ID's own words."""
    async with signing_in(entra) as nmi:
        client_id = "f9fa6eeb-4fc7-4dea-841e-c8559a502d26"
        message = {"error": "invalid_client", "error_description": f"AADSTS700016: '{client_id}' is unknown"}
        entra.script.append(Reply(400, json.dumps(message).encode()))
        nmi.cluster.add(pod(), principal(entra, client_id=client_id))
        assert client_id in (await nmi.ask()).json["error_description"]
    output = capfd.readouterr().err
    assert "AADSTS700016" in output
    assert "f9fa6eeb-4fc7" not in output
    assert PASSWORD not in output
