"""How real SDKs handle NMI's answers: azure-identity sync and aio, MSAL, @azure/identity, through the redirect."""

import time

import pytest

import make
from interop.sdks.conftest import LABELLED, PLAIN, World
from waiting import until

CLIENTS = ("sync", "aio", "msal", "node")
RETRYING = ("sync", "aio", "node")  # MSAL by itself retries nothing
DAY = 86400


@pytest.mark.parametrize("client", CLIENTS)
def test_a_pod_gets_the_token_of_its_first_identity(world: World, client: str) -> None:
    """Without a selector it is the first binding's identity, and the SDK reads when the token expires."""
    told = world.sdk(LABELLED, client).ask(client)
    assert told.get("token", told).startswith("token of one "), told
    assert DAY - 600 < told["expires_on"] - time.time() <= DAY + 5


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("selector", ["client_id", "msi_res_id"])
def test_a_pod_names_one_of_its_identities(world: World, client: str, selector: str) -> None:
    """A pod names it by client ID or resource ID, under the parameter that each SDK uses."""
    value = "CLIENT-OF-TWO" if selector == "client_id" else make.resource_id("two")
    options = {selector: value}
    if client in {"sync", "aio"} and selector == "msi_res_id":
        name = "resource_id" if client == "sync" else "msi_res_id"  # aio sends the key as it is
        options = {"identity_config": {name: value}}  # type: ignore[dict-item]
    told = world.sdk(LABELLED, client).ask(client, options)
    assert told.get("token", told).startswith("token of two "), told


def test_aio_may_also_say_mi_res_id(world: World) -> None:
    """NMI also takes `mi_res_id`, the spelling of Go's SDK."""
    options = {"identity_config": {"mi_res_id": make.resource_id("two")}}
    told = world.sdk(LABELLED, "aio").ask("aio", options)  # type: ignore[arg-type]
    assert told.get("token", told).startswith("token of two "), told


@pytest.mark.parametrize("client", CLIENTS)
def test_a_pod_without_an_identity_is_told_at_once(world: World, client: str) -> None:
    """The SDK gets 400 `Identity not found`, does not retry, and raises the error that lets a chain go on."""
    before = world.answered(400)
    told = world.sdk(PLAIN, client).ask(client)
    expected = {"msal": "invalid_request", "node": "CredentialUnavailableError"}
    assert told["error"] == expected.get(client, "CredentialUnavailableError"), told
    assert world.answered(400) == before + 1


@pytest.mark.parametrize("client", CLIENTS)
def test_an_object_id_is_not_found(world: World, client: str) -> None:
    """NMI knows no object IDs: such a request gets no token, not even of the pod's own identity."""
    options = {"object_id": "33333333-3333-3333-3333-333333333333"}
    if client in {"sync", "aio"}:
        options = {"identity_config": dict(options)}  # type: ignore[dict-item]
    told = world.sdk(LABELLED, client).ask(client, options)
    assert "token" not in told, told


@pytest.mark.parametrize("client", RETRYING)
def test_a_chain_goes_on(world: World, client: str) -> None:
    """In a pod without the label the chain uses its next credential."""
    told = world.sdk(PLAIN, client).ask(client, chain=True)
    assert told.get("token") == "from the next credential of the chain", told


@pytest.mark.parametrize("client", ["sync", "aio", "node-default"])
def test_probes_are_answered(world: World, client: str) -> None:
    """In a chain SDKs first ask without the Metadata header; NMI's 400 tells them that IMDS is there."""
    refused, granted = world.answered(400), world.answered(200)
    told = world.sdk(LABELLED, client).ask(client, chain=client != "node-default")
    assert told.get("token", told).startswith("token of one "), told
    assert (world.answered(400) - refused, world.answered(200) - granted) == (1, 1)


@pytest.mark.parametrize("client", RETRYING)
def test_503_with_retry_after_is_honoured(world: World, client: str) -> None:
    """While two pods claim an address NMI answers 503; the SDK asks again and gets its token."""
    before = world.answered(503)
    world.node.add_pod(LABELLED, "twin")
    sdk = world.sdk(LABELLED, client)
    try:
        sdk.begin(client)
        until(lambda: world.answered(503) > before, "a 503", 60)
    finally:
        world.node.remove("/api/v1/namespaces/default/pods/twin")
    told = sdk.end()
    assert told.get("token", told).startswith("token of one "), told


@pytest.mark.parametrize("client", RETRYING)
def test_404_is_retried_until_the_identity_is_there(world: World, client: str) -> None:
    """SDKs ask again after upstream's 404 for an identity that is not assigned yet, and then get its token."""
    before = world.answered(404)
    name = f"late-{client}"
    sdk = world.sdk(LABELLED, client)
    sdk.begin(client, {"client_id": f"client-of-{name}"})
    until(lambda: world.answered(404) > before, "a 404", 60)
    world.node.assign("one", make.identity(name))
    told = sdk.end()
    assert told.get("token", told).startswith(f"token of {name} "), told
