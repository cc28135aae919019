"""SDKs with token proxies switched on get tokens through the broker, and tell their users what is missing.

The SDKs are the published ones, unmodified; all their settings are in the environment, as in a pod.
"""

from collections.abc import Mapping

import jwt
import pytest

from interop.broker.conftest import Start, World
from interop.broker.programs import Answer, Program, Sdk, ask_all
from interop.broker.stage import SUBJECT
from interop.stage import Record

pytestmark = pytest.mark.timeout(900)  # the first test installs the clients, where that was not done before

VAULT = "https://vault.azure.net"
CHALLENGE = '{"access_token":{"nbf":{"essential":true,"value":"1"}}}'
OTHER_TENANT = "11111111-2222-3333-4444-555555555555"
Programs = Mapping[str, Program]


def identity_of(answer: Answer) -> object:
    """Return the client ID of the identity whose token an answer has."""
    assert "token" in answer, answer
    return jwt.decode(answer["token"], options={"verify_signature": False})["appid"]


def identities_of(answers: Mapping[str, Answer]) -> set[object]:
    """Return the client IDs of all answers' tokens."""
    return {identity_of(answer) for answer in answers.values()}


def messages_of(answers: Mapping[str, Answer]) -> dict[str, str]:
    """Return the message of each SDK's exception; no answer may have a token."""
    assert not any("token" in answer for answer in answers.values()), answers
    return {title: answer["message"] for title, answer in answers.items()}


def test_an_sdk_gets_a_token_and_the_reason_for_a_refusal(
    world: World, programs: Programs, sdk: Sdk, record: Record
) -> None:
    """The pod's account gets its identity's token; another account's exception says which grant is missing.

    Go and Java ask for scopes that mean nothing without a user; Entra ID is not asked for them.
    """
    other = world.stage.account("bank/vault")
    refused = programs[sdk.title].ask(token_file=other.token_file)
    error = refused.get("error", "").rsplit(".", 1)[-1]
    title = f"{sdk.title}, WorkloadIdentityCredential with a token proxy"
    record(title, sdk.version(), f"gets its identity's token; without a grant its error is `{error}`")
    answer = programs[sdk.title].ask()
    assert identity_of(answer) == world.reader
    claims = jwt.decode(answer["token"], options={"verify_signature": False})
    assert claims["aud"] == VAULT
    assert {form["scope"] for form in world.stage.forms.of(world.reader)} == {f"{VAULT}/.default"}
    sentence = f"service account {other.key} may not use identity {world.reader}; bind it to a ClusterRole"
    assert sentence in refused["message"]


def test_a_refusal_costs_entra_nothing(world: World, programs: Programs) -> None:
    """A request for an identity that is not granted causes no call to Entra ID."""
    client_id = world.stage.identity("nobodys")
    for message in messages_of(ask_all(programs, client_id=client_id)).values():
        assert f"service account {world.cart.key} may not use identity {client_id}" in message
    assert world.stage.forms.of(client_id) == []


def test_a_grant_to_a_namespace(world: World, programs: Programs) -> None:
    """A grant to the group `system:serviceaccounts:NAMESPACE` holds for that namespace's accounts, and no others."""
    client_id = world.stage.identity("of-a-namespace")
    world.stage.grant(client_id, "system:serviceaccounts:team")
    member, stranger = world.stage.account("team/any"), world.stage.account("other/any")
    assert identities_of(ask_all(programs, client_id=client_id, token_file=member.token_file)) == {client_id}
    messages_of(ask_all(programs, client_id=client_id, token_file=stranger.token_file))


def test_the_case_of_a_client_id_does_not_matter(world: World, programs: Programs) -> None:
    """A client ID in upper case names the same identity."""
    assert identities_of(ask_all(programs, client_id=world.reader.upper())) == {world.reader}


def test_another_tenant_is_refused(world: World, programs: Programs) -> None:
    """The error names the tenant to use, also if the SDK looks its authority up first."""
    for message in messages_of(ask_all(programs, tenant_id=OTHER_TENANT)).values():
        assert f"are in tenant {world.stage.tenant_id}, not in" in message


def test_discovery_stays_in_the_proxy(world: World, start: Start, sdk: Sdk) -> None:
    """The broker answers the discovery requests of Go and Java itself; Entra ID gets only token requests."""
    before = len(_discoveries(world))
    assert identity_of(start(sdk, world.variables()).ask()) == world.reader
    instance = "/common/discovery/instance"
    configuration = f"/{world.stage.tenant_id}/v2.0/.well-known/openid-configuration"
    expected = {"Go azidentity": {instance, configuration}, "Java azure-identity": {instance}}
    assert set(_discoveries(world)[before:]) == expected.get(sdk.title, set())
    asked = {entry.target for entry in world.stage.azure.log.entries if entry.service == "entra"}
    assert asked == {f"/{world.stage.tenant_id}/oauth2/v2.0/token"}


def _discoveries(world: World) -> list[str]:
    """Return the paths of documents that the broker was asked for."""
    messages = [line.get("msg", "") for line in world.broker.lines()]
    return [message.rpartition(" ")[2] for message in messages if message.startswith("discovery: ")]


def test_capabilities_share_a_token(world: World, programs: Programs, identity: str) -> None:
    """SDKs write the capability `CP1` in five ways; one call to Entra ID serves them all."""
    assert identities_of(ask_all(programs, client_id=identity, cae=True, new=True)) == {identity}
    assert identities_of(ask_all(programs, client_id=identity, cae=True, new=True)) == {identity}
    claims = [form["claims"] for form in world.stage.forms.of(identity)]
    assert claims == ['{"access_token":{"xms_cc":{"values":["CP1"]}}}']


@pytest.mark.parametrize("cae", [False, True])
def test_a_challenge_reaches_entra(world: World, programs: Programs, identity: str, cae: bool) -> None:  # noqa: FBT001
    """A challenge passes all caches, with the client's capabilities. Java's SDK sends none with such a credential."""
    challenged = {title: program for title, program in programs.items() if not title.startswith("Java")}
    ask_all(challenged, client_id=identity, cae=cae)
    before = len(world.stage.forms.of(identity))
    assert identities_of(ask_all(challenged, client_id=identity, cae=cae, claims=CHALLENGE)) == {identity}
    forms = world.stage.forms.of(identity)[before:]
    assert len(forms) == len(challenged)
    for form in forms:
        assert '"nbf"' in form["claims"]
        assert ("xms_cc" in form["claims"]) == cae


def test_a_credential_that_spreads_is_waited_for(world: World, programs: Programs) -> None:
    """While a new credential spreads, no SDK gets an error, and one line of the broker's log names the identity."""
    faults = world.stage.azure.faults
    faults.federation_delay_seconds = 2.0
    client_id = world.stage.identity("created-a-moment-ago")
    faults.federation_delay_seconds = 0.0
    world.stage.grant(client_id, world.cart.key)
    assert identities_of(ask_all(programs, client_id=client_id)) == {client_id}
    assert len(world.stage.forms.of(client_id)) > 1
    lines = [line for line in world.broker.lines() if client_id in line.get("msg", "")]
    assert len(lines) == 1


def test_an_identity_without_a_credential(world: World, programs: Programs) -> None:
    """The exception has Entra ID's error number and the subject that the credential must name."""
    client_id = world.stage.identity("trusts-nobody", credential=False)
    world.stage.grant(client_id, world.cart.key)
    for message in messages_of(ask_all(programs, client_id=client_id)).values():
        assert "AADSTS70025" in message
        assert SUBJECT in message
