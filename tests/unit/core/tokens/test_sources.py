"""Where the token of an identity comes from."""

from dataclasses import replace

import pytest

import make
from podidentity.core.model.identities import AzureIdentity, SecretReference
from podidentity.core.tokens import sources
from podidentity.core.tokens.imds import Refusal, TokenRequest
from podidentity.core.tokens.sources import PUBLIC_LOGIN, BrokerIdentity, ManagedIdentity, ServicePrincipal, SourceRules

SECRET = SecretReference("default", "s")
PRINCIPAL = make.identity(type=1, tenant_id="t", client_password=SECRET)


def test_a_user_assigned_identity_is_asked_for_by_its_resource_id() -> None:
    """IMDS is asked by resource ID.

    An AzureIdentity with an allowed resource ID and a neighbour's client ID must not yield the neighbour's token.
    """
    identity = make.identity(client_id="client-of-neighbour")
    assert sources.source_of(identity) == ManagedIdentity(resource_id=make.resource_id("reader"))


def test_without_a_resource_id_the_client_id_is_asked_for() -> None:
    """IMDS is asked by client ID when there is no resource ID, which managed mode allows."""
    assert sources.source_of(make.identity(resource_id="")) == ManagedIdentity(client_id="client-of-reader")


def test_without_any_id_nothing_is_asked() -> None:
    """Without resource ID and client ID the request is refused: IMDS would answer with the machine's own identity."""
    refusal = sources.source_of(make.identity(resource_id="", client_id=""))
    assert isinstance(refusal, Refusal)
    assert "neither a well-formed resourceID nor a clientID" in refusal.message


@pytest.mark.parametrize(("number", "certificate"), [(1, False), (2, True)])
def test_a_service_principal_is_asked_for_with_its_secret(*, number: int, certificate: bool) -> None:
    """Type 1 signs in with a secret, type 2 with a certificate."""
    result = sources.source_of(replace(PRINCIPAL, type=number, ad_endpoint="e/", auxiliary_tenant_ids=("t2",)))
    assert result == ServicePrincipal("t", "client-of-reader", "e", SECRET, certificate, ("t2",))


def test_without_an_endpoint_the_public_cloud_is_asked() -> None:
    """Without adEndpoint the token comes from the public cloud, as in upstream."""
    result = sources.source_of(PRINCIPAL)
    assert isinstance(result, ServicePrincipal)
    assert result.endpoint == PUBLIC_LOGIN == "https://login.microsoftonline.com"


@pytest.mark.parametrize(
    "fields", [{"tenant_id": "a/../b"}, {"tenant_id": "a" * 254}, {"auxiliary_tenant_ids": ("t2", "?x")}]
)
def test_a_tenant_is_an_id_or_a_domain(fields: dict[str, object]) -> None:
    """A tenant must be an ID or a domain, because it becomes part of a URL's path."""
    refusal = sources.source_of(replace(PRINCIPAL, **fields))  # type: ignore[arg-type]  # any field
    assert isinstance(refusal, Refusal)
    assert "neither an ID nor a domain" in refusal.message


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({}, True),
        ({"ad_endpoint": "https://login.microsoftonline.com/"}, True),
        ({"ad_endpoint": "https://LOGIN.microsoftonline.com"}, True),
        ({"ad_endpoint": "https://login.own.cloud"}, True),
        ({"ad_endpoint": "http://login.microsoftonline.com"}, False),
        ({"ad_endpoint": "https://login.microsoftonline.com@evil.example"}, False),
        ({"ad_endpoint": "https://login.microsoftonline.com/evil"}, False),
        ({"ad_endpoint": "https://evil.example"}, False),
        ({"client_password": SecretReference("shared", "s")}, True),
        ({"client_password": SecretReference("kube-system", "s")}, False),
    ],
)
def test_a_secret_goes_to_known_clouds_only(*, fields: dict[str, object], allowed: bool) -> None:
    """An unknown adEndpoint and a Secret of a namespace that is not allowed are refused.

    Together they could carry a foreign Secret out of the cluster.
    """
    rules = SourceRules(frozenset({"shared"}), frozenset({PUBLIC_LOGIN, "https://login.own.cloud"}))
    identity = replace(PRINCIPAL, **fields)  # type: ignore[arg-type]  # any field
    result = sources.allowed_source(identity, make.pod(), rules)
    assert isinstance(result, Refusal) != allowed
    assert sources.allowed_source(make.identity(), make.pod(), rules) == sources.source_of(make.identity())


@pytest.mark.parametrize(
    ("identity", "missing"),
    [
        (replace(PRINCIPAL, tenant_id=""), "tenantID"),
        (replace(PRINCIPAL, client_id=""), "clientID"),
        (replace(PRINCIPAL, client_password=None), "clientPassword"),
        (replace(PRINCIPAL, tenant_id="", client_password=None), "tenantID and clientPassword"),
    ],
)
def test_what_a_service_principal_lacks_is_named(identity: AzureIdentity, missing: str) -> None:
    """The refusal names the fields to fill in."""
    refusal = sources.source_of(identity)
    assert isinstance(refusal, Refusal)
    assert f"lacks {missing};" in refusal.message


def test_an_unknown_type_is_refused() -> None:
    """An unknown type is refused: the API server stores any number there."""
    refusal = sources.source_of(make.identity(type=7))
    assert isinstance(refusal, Refusal)
    assert "type 7" in refusal.message


def test_an_excepted_pod_is_answered_with_what_it_asks_for() -> None:
    """An excepted pod gets what it asks for, as it would from IMDS without podidentity."""
    asked = TokenRequest("r", resource_id="x")
    assert sources.own_source(asked) == ManagedIdentity(resource_id="x")


CLIENT = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"


def test_an_identity_of_the_broker_is_asked_in_the_pods_name() -> None:
    """The broker is asked in the name of the requesting pod, which it judges by its service account."""
    identity, pod = make.identity(type=3, client_id=CLIENT.upper()), make.pod("web", "shop")
    assert sources.source_of(identity) == BrokerIdentity(CLIENT)
    source = sources.allowed_source(identity, pod, SourceRules(broker=True))
    assert source == BrokerIdentity(CLIENT, "shop", "web", pod.uid)


def test_an_identity_of_the_broker_needs_one_and_a_client_id() -> None:
    """Without a broker, or without a well-formed client ID, the refusal names the setting."""
    refusal = sources.allowed_source(make.identity(type=3, client_id=CLIENT), make.pod(), SourceRules())
    assert isinstance(refusal, Refusal)
    assert "--broker" in refusal.message
    refusal = sources.source_of(make.identity(type=3, client_id="reader"))
    assert isinstance(refusal, Refusal)
    assert "clientID" in refusal.message
