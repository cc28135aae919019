"""Entra ID accepts every proof of an application that clients use, and nothing else."""

import base64
import datetime as dt
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx2
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from podidentity_lab.azure import Azure
from podidentity_lab.azure.state import FederatedCredential, Principal

Send = Callable[..., httpx2.Response]
SCOPE = "https://management.azure.com//.default"
BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ISSUER = "https://issuer.example"
AUDIENCE = "api://AzureADTokenExchange"
SUBJECT = "system:serviceaccount:default:reader"


@dataclass
class Key:
    """A private key and a certificate for it, valid from `begins` for a day."""

    begins: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC) - dt.timedelta(hours=1))
    private: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    def __post_init__(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "app")])
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.private.public_key())
            .serial_number(1)
            .not_valid_before(self.begins)
            .not_valid_after(self.begins + dt.timedelta(days=1))
            .sign(self.private, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def x5c(self) -> list[str]:
        """Return the certificate as RFC 7515 has it."""
        return [base64.b64encode(self.certificate.public_bytes(serialization.Encoding.DER)).decode()]

    def thumbprint(self, algorithm: hashes.HashAlgorithm) -> str:
        """Return the certificate's thumbprint as the headers x5t and x5t#S256 have it."""
        return base64.urlsafe_b64encode(self.certificate.fingerprint(algorithm)).decode().rstrip("=")

    def key_set(self, kid: str) -> dict[str, Any]:
        """Return the key set that an issuer publishes."""
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.private.public_key()))
        return {"keys": [{**public, "kid": kid, "use": "sig"}]}


FORMS: tuple[tuple[str, Callable[[Key], dict[str, Any]]], ...] = (
    ("PS256", lambda key: {"x5t#S256": key.thumbprint(hashes.SHA256())}),
    ("RS256", lambda key: {"x5t": key.thumbprint(hashes.SHA1())}),  # noqa: S303  # x5t is SHA-1 by RFC 7515
    ("RS256", lambda key: {"x5t": key.thumbprint(hashes.SHA1()), "x5c": key.x5c()}),  # noqa: S303  # likewise
    ("RS256", lambda key: {"x5t#S256": key.thumbprint(hashes.SHA256())}),
)


@pytest.fixture(scope="module")
def key() -> Key:
    """An application's key."""
    return Key()


@pytest.fixture
def app(azure: Azure, key: Key) -> Principal:
    """An application with a certificate and a federated credential."""
    made = Principal("app-object", str(uuid.uuid4()), "app", certificates=[key.pem], application_id="app-1")
    made.federated["one"] = FederatedCredential("one", ISSUER, SUBJECT, [AUDIENCE])
    azure.state.principals[made.object_id] = made
    return made


@dataclass
class Tenant:
    """The token endpoint, and the meaning of its answers."""

    azure: Azure
    send: Send

    def ask(self, client_id: str, **form: str) -> httpx2.Response:
        """Send a token request to the endpoint v2.0."""
        url = f"https://login.microsoftonline.com/{self.azure.settings.tenant_id}/oauth2/v2.0/token"
        base = {"grant_type": "client_credentials", "client_id": client_id, "scope": SCOPE}
        return self.send("POST", url, data=base | form)

    def assertion(self, app: Principal, signed: str) -> httpx2.Response:
        """Ask with a client assertion."""
        return self.ask(app.client_id, client_assertion=signed, client_assertion_type=BEARER)

    def number(self, answer: httpx2.Response) -> int:
        """Return the AADSTS number, which the description must show as SDKs print it."""
        body = answer.json()
        assert body["error_description"].startswith(f"AADSTS{body['error_codes'][0]}: ")
        return int(body["error_codes"][0])


@pytest.fixture
def tenant(azure: Azure, send: Send) -> Tenant:
    """The lab's tenant."""
    return Tenant(azure, send)


def own(azure: Azure, app: Principal, **changed: Any) -> dict[str, Any]:
    """Return the claims of an application's assertion."""
    now = int(dt.datetime.now(dt.UTC).timestamp())
    audience = f"https://login.microsoftonline.com/{azure.settings.tenant_id}/oauth2/v2.0/token"
    claims = {"iss": app.client_id, "sub": app.client_id, "aud": audience, "nbf": now, "exp": now + 600, "jti": "1"}
    return claims | changed


@pytest.mark.parametrize(("algorithm", "header"), FORMS)
def test_a_certificate_signs_an_application_in(
    tenant: Tenant, azure: Azure, app: Principal, key: Key, algorithm: str, header: Callable[[Key], dict[str, Any]]
) -> None:
    """An assertion is accepted in both forms of today's libraries, and in those of azure-cli and adal."""
    signed = jwt.encode(own(azure, app), key.private, algorithm, headers=header(key))
    assert tenant.assertion(app, signed).status_code == 200


def test_assertions_that_prove_nothing(tenant: Tenant, azure: Azure, app: Principal, key: Key) -> None:
    """An assertion that is expired, for another tenant or application, badly signed or no JWT gets its own number."""
    header = {"x5t#S256": key.thumbprint(hashes.SHA256())}
    other = Key()

    def number(claims: dict[str, Any], signer: Key = key, named: dict[str, str] = header) -> int:
        answer = tenant.assertion(app, jwt.encode(claims, signer.private, "PS256", headers=named))
        assert answer.status_code == 401
        return tenant.number(answer)

    past = int(dt.datetime.now(dt.UTC).timestamp()) - 7200
    assert number(own(azure, app, nbf=past, exp=past + 600)) == 700024
    assert number(own(azure, app, aud=f"https://login.microsoftonline.com/{uuid.uuid4()}")) == 700023
    assert number(own(azure, app, sub="somebody-else")) == 700021
    assert number(own(azure, app), signer=other) == 700027
    assert number(own(azure, app), other, {"x5t#S256": other.thumbprint(hashes.SHA256())}) == 700027
    assert tenant.number(tenant.assertion(app, "a.b.c")) == 50027


def test_an_expired_certificate_signs_nobody_in(tenant: Tenant, azure: Azure, app: Principal) -> None:
    """An assertion by an expired certificate gets AADSTS700027, though its signature is right."""
    old = Key(begins=dt.datetime.now(dt.UTC) - dt.timedelta(days=9))
    app.certificates.append(old.pem)
    header = {"x5t#S256": old.thumbprint(hashes.SHA256())}
    answer = tenant.assertion(app, jwt.encode(own(azure, app), old.private, "PS256", headers=header))
    assert tenant.number(answer) == 700027
    assert "expired" in answer.json()["error_description"]


def foreign(**changed: Any) -> dict[str, Any]:
    """Return the claims of another issuer's token."""
    now = int(dt.datetime.now(dt.UTC).timestamp())
    claims = {"iss": ISSUER, "sub": SUBJECT, "aud": [AUDIENCE], "iat": now, "nbf": now, "exp": now + 600}
    return claims | changed


def test_a_federated_credential_takes_its_issuers_tokens(
    tenant: Tenant, azure: Azure, app: Principal, key: Key
) -> None:
    """A token is accepted in its time if issuer, audience and subject match and a published key signed it."""
    azure.publish_issuer(ISSUER, lambda: key.key_set("one"))

    def answer(claims: dict[str, Any], signer: Key = key, kid: str = "one") -> httpx2.Response:
        return tenant.assertion(app, jwt.encode(claims, signer.private, "RS256", headers={"kid": kid}))

    assert answer(foreign()).status_code == 200
    assert answer(foreign(aud=AUDIENCE)).status_code == 200
    assert tenant.number(answer(foreign(iss="https://other.example"))) == 700211
    assert tenant.number(answer(foreign(aud="api://other"))) == 700212
    assert tenant.number(answer(foreign(sub=SUBJECT + "x"))) == 700213
    assert tenant.number(answer(foreign(nbf=1, iat=1, exp=2))) == 700024
    assert tenant.number(answer(foreign(), signer=Key())) == 7000272
    assert tenant.number(answer(foreign(), kid="two")) == 7000272


@pytest.fixture
def issuer(azure: Azure, key: Key) -> Iterator[str]:
    """An issuer of its own on loopback, with a certificate of the lab's authority."""
    documents: dict[str, Any] = {}

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = documents.get(self.path)
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is the base class's
            pass

    server = HTTPServer(("127.0.0.1", 0), Pages)
    server.socket = azure.tls_context().wrap_socket(server.socket, server_side=True)
    url = f"https://localhost:{server.server_port}/cluster"
    documents["/cluster/.well-known/openid-configuration"] = {"issuer": url, "jwks_uri": f"{url}/keys"}
    documents["/cluster/keys"] = key.key_set("two")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield url
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_issuers_keys_are_fetched_from_where_it_publishes_them(
    tenant: Tenant, app: Principal, key: Key, issuer: str
) -> None:
    """Keys are found through openid-configuration; an issuer that cannot be reached is AADSTS501661."""
    app.federated["two"] = FederatedCredential("two", issuer, SUBJECT, [AUDIENCE])
    signed = jwt.encode(foreign(iss=issuer), key.private, "RS256", headers={"kid": "two"})
    assert tenant.assertion(app, signed).status_code == 200
    app.federated["gone"] = FederatedCredential("gone", f"{issuer}/gone", SUBJECT, [AUDIENCE])
    signed = jwt.encode(foreign(iss=f"{issuer}/gone"), key.private, "RS256", headers={"kid": "two"})
    assert tenant.number(tenant.assertion(app, signed)) == 501661


def test_an_application_that_nobody_agreed_to_gets_nothing(tenant: Tenant, azure: Azure) -> None:
    """Without consent it is AADSTS65001; a missing secret, unknown application or service has another number."""
    owner = azure.settings.owner
    assert tenant.number(tenant.ask(owner.client_id)) == 7000216
    assert tenant.number(tenant.ask(str(uuid.uuid4()), client_secret="x")) == 700016
    nowhere = tenant.ask(owner.client_id, client_secret=owner.secret, scope="https://nowhere.example/.default")
    assert (tenant.number(nowhere), nowhere.json()["error"]) == (500011, "invalid_resource")
    azure.state.principals[owner.object_id].consented = False
    refused = tenant.ask(owner.client_id, client_secret=owner.secret)
    assert (tenant.number(refused), refused.json()["error"]) == (65001, "invalid_grant")


def test_the_first_endpoint_answers_in_strings(azure: Azure, send: Send) -> None:
    """`/oauth2/token` takes `resource`, as adal sends it, and all values of its answer are strings."""
    owner = azure.settings.owner
    form = {"grant_type": "client_credentials", "client_id": owner.client_id, "client_secret": owner.secret}
    url = f"https://login.microsoftonline.com/{azure.settings.tenant_id}/oauth2/token?api-version=1.0"
    answer = send("POST", url, data={**form, "resource": "https://vault.azure.net"}).json()
    assert answer["resource"] == "https://vault.azure.net"
    assert {type(value) for value in answer.values()} == {str}


def test_discovery_knows_the_host_and_its_aliases(azure: Azure, send: Send) -> None:
    """Instance discovery, which msal asks first, knows the host; an unknown tenant has no configuration."""
    base = "https://login.microsoftonline.com"
    found = send("GET", f"{base}/common/discovery/instance?api-version=1.1&authorization_endpoint=x").json()
    assert "login.microsoftonline.com" in found["metadata"][0]["aliases"]
    configuration = send("GET", f"{base}/{azure.settings.tenant_id}/.well-known/openid-configuration").json()
    assert configuration["issuer"] == f"https://sts.windows.net/{azure.settings.tenant_id}/"
    assert configuration["token_endpoint"].endswith("/oauth2/token")
    assert send("GET", f"{base}/{uuid.uuid4()}/v2.0/.well-known/openid-configuration").status_code == 400
