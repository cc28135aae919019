"""Entra ID exchanges exactly the tokens that a federated credential names, and ARM takes only what Azure takes."""

import asyncio
import re

import httpx2
import jwt
import pytest

from daemons.lab_azure.federation import ARM, AUDIENCE, ISSUER, SUBJECT, Key, Tenant
from podidentity_lab.azure.state import FederatedCredential, Principal


@pytest.fixture
def tenant() -> Tenant:
    """A tenant with one identity that trusts nobody yet."""
    return Tenant()


def test_an_identity_without_credentials_exchanges_nothing(tenant: Tenant) -> None:
    """An identity without credentials gives AADSTS70025, an unknown client 700016."""
    assert tenant.exchange(tenant.assertion()) == (401, "invalid_client", 70025)
    assert tenant.exchange(tenant.assertion(), "nobody") == (400, "unauthorized_client", 700016)


def test_a_credential_is_compared_letter_for_letter(tenant: Tenant) -> None:
    """A slash at the issuer's end, or other case in issuer, audience or subject, does not match the credential."""
    tenant.trust()
    assert tenant.exchange(tenant.assertion()) == (200, "", 0)
    for changed, number in (
        ({"iss": ISSUER + "/"}, 700211),
        ({"iss": ISSUER.replace("issuer", "Issuer")}, 700211),
        ({"aud": [AUDIENCE.lower()]}, 700212),
        ({"sub": SUBJECT.upper()}, 700213),
    ):
        assert tenant.exchange(tenant.assertion(**changed)) == (401, "invalid_client", number)
        value = next(iter(changed.values()))
        assert (value if isinstance(value, str) else value[0]) in tenant.description


def test_an_identitys_token_lives_a_day_and_an_applications_an_hour(tenant: Tenant) -> None:
    """`expires_in` is one second less than 24 h for an identity, and than 1 h for an application."""
    tenant.trust()
    tenant.exchange(tenant.assertion())
    assert tenant.lifetime == 86_399
    app = Principal("app", "app-client", "app", application_id="app-1")
    app.federated["fed"] = FederatedCredential("fed", ISSUER, SUBJECT, [AUDIENCE])
    tenant.azure.state.principals["app"] = app
    assert tenant.exchange(tenant.assertion(), "app-client") == (200, "", 0)
    assert tenant.lifetime == 3599


def test_what_is_no_token_of_the_right_kind_is_refused(tenant: Tenant) -> None:
    """No JWT, another type, no signature, HS256, or a scope without `/.default` gets its own number."""
    tenant.trust()
    claims = jwt.decode(tenant.assertion(), options={"verify_signature": False})
    assert tenant.exchange("nonsense") == (400, "invalid_request", 50027)
    assert tenant.exchange(tenant.assertion(header={"typ": "at+jwt"})) == (400, "invalid_request", 5002727)
    assert tenant.exchange(tenant.assertion(header={"typ": "JWT"})) == (200, "", 0)
    assert tenant.exchange(jwt.encode(claims, "", "none"))[1:] == ("invalid_request", 50027)
    assert tenant.exchange(jwt.encode(claims, "k" * 32, "HS256"))[1:] == ("invalid_request", 50027)
    assert tenant.exchange(tenant.assertion(), scope=ARM) == (400, "invalid_scope", 1002012)
    two = f"{ARM}/.default https://vault.azure.net/.default"
    assert tenant.exchange(tenant.assertion(), scope=two) == (400, "invalid_scope", 1002012)


@pytest.mark.parametrize("scope", [f"{ARM}/.default openid profile offline_access", f"OpenID {ARM}/.default"])
def test_what_msal_asks_for_beside_the_resource_is_ignored(tenant: Tenant, scope: str) -> None:
    """MSAL for Go and for Java append OpenID's scopes; the token is for the resource alone."""
    tenant.trust()
    assert tenant.exchange(tenant.assertion(), scope=scope) == (200, "", 0)
    assert jwt.decode(tenant.access_token, options={"verify_signature": False})["aud"] == ARM


@pytest.mark.parametrize(("begins", "ends"), [(-7200, -3600), (3600, 7200)])
def test_a_token_outside_its_time_is_refused_with_the_times(tenant: Tenant, begins: int, ends: int) -> None:
    """AADSTS700024 names the current time and the token's begin and end."""
    tenant.trust()
    now = int(tenant.clock.wall())
    outside = tenant.assertion(nbf=now + begins, exp=now + ends)
    assert tenant.exchange(outside) == (401, "invalid_client", 700024)
    moment = r"2027-01-1\dT\d\d:\d\d:\d\d\.0+Z"
    assert re.search(f"{moment}.* from {moment}.* {moment}", tenant.description)


def test_a_key_is_used_only_once_its_publication_has_been_seen(tenant: Tenant) -> None:
    """Keys are cached for 25 minutes: until then a new one fails, and a withdrawn one is still accepted."""
    tenant.trust()
    old, new = tenant.key, Key("second")
    assert tenant.exchange(tenant.assertion(old)) == (200, "", 0)
    tenant.published.append(new)
    assert tenant.exchange(tenant.assertion(new)) == (401, "invalid_client", 7000272)
    tenant.clock.jump(1500)
    assert tenant.exchange(tenant.assertion(new)) == (200, "", 0)
    assert tenant.exchange(tenant.assertion(old)) == (200, "", 0)
    tenant.published.remove(old)
    assert tenant.exchange(tenant.assertion(old)) == (200, "", 0)
    tenant.azure.faults.issuer_keys_seconds = 0
    assert tenant.exchange(tenant.assertion(old)) == (401, "invalid_client", 7000272)


def test_an_issuer_is_asked_only_when_a_credential_names_it(tenant: Tenant) -> None:
    """An unreachable issuer is 501661 if a credential names it, else 700211; a broken key set is 900612."""
    tenant.trust()
    nowhere = "https://127.0.0.1:1/none"
    assert tenant.exchange(tenant.assertion(iss=nowhere)) == (401, "invalid_client", 700211)
    tenant.trust("nowhere", issuer=nowhere)
    assert tenant.exchange(tenant.assertion(iss=nowhere)) == (400, "invalid_request", 501661)
    tenant.azure.publish_issuer(ISSUER, lambda: {"keys": "none"})
    assert tenant.exchange(tenant.assertion()) == (400, "invalid_request", 900612)


def test_a_new_credential_takes_its_time_to_spread(tenant: Tenant) -> None:
    """With a delay of 20 s the answer is 70021 until then; a subject that no credential has stays 700213."""
    tenant.azure.faults.federation_delay_seconds = 20
    tenant.trust()
    assert tenant.exchange(tenant.assertion()) == (400, "invalid_request", 70021)
    tenant.clock.jump(20)
    assert tenant.exchange(tenant.assertion()) == (200, "", 0)
    assert tenant.exchange(tenant.assertion(sub="other")) == (401, "invalid_client", 700213)


def test_an_identity_stands_for_an_application(tenant: Tenant) -> None:
    """A managed identity's token for the exchange is taken for an application that trusts the identity."""
    app = Principal("app", "app-client", "app", application_id="app-1")
    issuer = f"https://login.microsoftonline.com/{tenant.azure.settings.tenant_id}/v2.0"
    app.federated["fed"] = FederatedCredential("fed", issuer, tenant.principal_id, [AUDIENCE])
    tenant.azure.state.principals["app"] = app
    tenant.trust()
    proof = {"client_assertion": tenant.assertion()}
    token = tenant.ask(tenant.client_id, proof, f"{AUDIENCE}/.default")[1]["access_token"]
    assert tenant.exchange(token, "app-client") == (200, "", 0)


@pytest.mark.parametrize("version", ["2023-01-31", "2025-01-31-preview"])
def test_arm_refuses_what_azure_refuses(tenant: Tenant, version: str) -> None:
    """Bad names, two audiences or none, long texts, and a second credential for an issuer and subject get 400."""
    assert tenant.trust(version=version) == 201
    assert tenant.trust(version=version) == 200
    for name in ("ab", "-abc", "a" * 121, "a.b.c", "pad="):
        assert tenant.trust(name, version, subject="other") == 400
    assert tenant.trust("two", version, audiences=["a", "b"], subject="other") == 400
    assert tenant.trust("two", version, audiences=[], subject="other") == 400
    assert tenant.trust("two", version, subject="s" * 601) == 400
    assert tenant.trust("two", version, subject="s" * 600) == 201
    assert tenant.trust("three", version) == 400
    expression = {"value": "claims['sub'] matches '*'", "languageVersion": 1}
    assert tenant.trust("three", version, subject="x", claimsMatchingExpression=expression) == 400


async def test_writes_below_one_identity_go_one_by_one(tenant: Tenant) -> None:
    """Of three writes at once one is done and the others get 409; a write below another identity is done."""
    tenant.azure.faults.federation_write_seconds = 0.2
    other = tenant.identity.removesuffix("one") + "two"
    tenant.manage("PUT", other, {"location": "westeurope"})
    transport = httpx2.ASGITransport(tenant.azure.app)
    async with httpx2.AsyncClient(transport=transport, headers={"Authorization": f"Bearer {tenant.token}"}) as http:
        paths = [f"{tenant.identity}/federatedIdentityCredentials/fed{number}" for number in range(3)]
        paths.append(f"{other}/federatedIdentityCredentials/fed")
        puts = [
            http.put(
                f"{ARM}{path}",
                json={"properties": {"issuer": ISSUER, "subject": path[-600:], "audiences": [AUDIENCE]}},
            )
            for path in paths
        ]
        responses = await asyncio.gather(*puts)
    assert [response.status_code for response in responses] == [201, 409, 409, 201]


def test_writes_and_reads_have_azures_rates(tenant: Tenant) -> None:
    """With limits on, writes and reads beyond the rate get 429 with Retry-After: 4 s and 2 s."""
    tenant.azure.faults.throttle = True
    statuses = [tenant.trust() for _ in range(3)]
    assert (statuses[-1], tenant.headers["retry-after"]) == (429, "4")
    tenant.clock.jump(4)
    assert tenant.trust() == 200
    path = f"{tenant.identity}/federatedIdentityCredentials"
    reads = [tenant.manage("GET", path)[0] for _ in range(6)]
    assert (reads, tenant.headers["retry-after"]) == ([200] * 5 + [429], "2")
