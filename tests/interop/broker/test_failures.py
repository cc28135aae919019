"""What SDKs do when Entra ID fails, when a grant is withdrawn, and when certificates are replaced meanwhile."""

from pathlib import Path

import pytest

from interop.broker.conftest import Start, World, available
from interop.broker.programs import Answer, Program, ask_all
from interop.broker.stage import SERVER_NAME
from interop.broker.test_tokens import CHALLENGE, Programs, identities_of, messages_of
from waiting import until

pytestmark = pytest.mark.timeout(900)  # the first test installs the clients, where that was not done before

REPLACED = "podidentity-replaced"
WITHDRAWAL_SECONDS = 30.0
ATTEMPTS = 4
"""How often each SDK asks before it gives up."""


@pytest.mark.parametrize(("status", "pause"), [(429, 1), (503, None)])
def test_a_moments_failure_of_entra_is_outlasted(
    world: World, programs: Programs, identity: str, status: int, pause: int | None
) -> None:
    """Each SDK asks again, after Retry-After if there is one, and gets its token."""
    faults = world.stage.azure.faults
    faults.retry_after_seconds = pause
    faults.entra_statuses.append(status)
    assert identities_of(ask_all(programs, client_id=identity)) == {identity}
    assert not faults.entra_statuses


@pytest.mark.parametrize(("status", "number"), [(429, "AADSTS90055"), (503, "AADSTS90033")])
def test_a_lasting_failure_of_entra_is_told(
    world: World, programs: Programs, identity: str, status: int, number: str
) -> None:
    """After four attempts each SDK shows Entra ID's error, as without a proxy; cached tokens are given meanwhile."""
    identities_of(ask_all(programs))
    faults = world.stage.azure.faults
    faults.retry_after_seconds = 1
    faults.entra_statuses.extend([status] * 100)
    try:
        for message in messages_of(ask_all(programs, client_id=identity)).values():
            assert number in message
        assert identities_of(ask_all(programs, new=True)) == {world.reader}
    finally:
        faults.entra_statuses.clear()
    statuses = [line["status"] for line in world.broker.lines() if line.get("client_id") == identity]
    assert statuses == [status] * ATTEMPTS * len(programs)


def test_a_silence_of_entra_is_outlasted(world: World, programs: Programs, identity: str) -> None:
    """After 10 s the broker answers 503; each SDK asks again and gets a token of one shared call.

    Meanwhile the broker gives tokens that are in its cache.
    """
    identities_of(ask_all(programs))
    faults, forms = world.stage.azure.faults, world.stage.forms
    faults.entra_seconds = 60.0
    for program in programs.values():
        program.begin(client_id=identity)
    until(lambda: forms.of(identity), "a call to Entra ID")
    faults.entra_seconds = 0.0
    with world.asking(world.cart, world.reader) as status:
        assert status() == 200
        assert len(forms.of(identity)) == 1
    answers = {title: program.end() for title, program in programs.items()}
    assert identities_of(answers) == {identity}
    statuses = [line["status"] for line in world.broker.lines() if line.get("client_id") == identity]
    assert sorted(statuses) == [200] * len(programs) + [503] * len(programs)
    assert len(forms.of(identity)) == 2


@pytest.mark.usefixtures("misled")  # these programs need 20 s, which pass during this test
def test_what_is_taken_away_is_gone_within_30_seconds(world: World, programs: Programs) -> None:
    """After a grant is withdrawn or a pod deleted, each SDK's next request fails, though the token was cached."""
    client_id = world.stage.identity("lent")
    borrower, pod = world.stage.account("borrower/any"), world.stage.account("borrower/deleted")
    grant = world.stage.grant(client_id, borrower.key)
    world.stage.grant(client_id, pod.key)
    for account in (borrower, pod):
        assert identities_of(ask_all(programs, client_id=client_id, token_file=account.token_file)) == {client_id}
    world.stage.withdraw(grant)
    world.stage.delete_pod(pod)

    for account in (borrower, pod):
        with world.asking(account, client_id) as status:
            until(lambda: status() != 200, f"no token for {account.pod}", WITHDRAWAL_SECONDS)
        messages_of(ask_all(programs, client_id=client_id, token_file=account.token_file, new=True))
    assert len(world.stage.forms.of(client_id)) == 1
    for message in messages_of(
        ask_all(programs, client_id=client_id, token_file=borrower.token_file, new=True)
    ).values():
        assert f"service account {borrower.key} may not use identity {client_id}" in message


def test_who_expects_another_name_gets_no_answer(misled: dict[str, Program]) -> None:
    """A client that expects the address, or another name, in the certificate ends with an error about it.

    All other tests show that the name of `--server-names` is in the certificate.
    """
    answers = {title: program.end() for title, program in misled.items()}
    for title, message in messages_of(answers).items():
        assert any(word in message.lower() for word in ("certificate", "network_error", "connection")), (title, message)
        assert SERVER_NAME not in message or "not other.example" in message


def test_certificates_are_replaced_while_clients_run(world: World, start: Start) -> None:
    """While an administrator's order replaces the CA, until the old one is retired, no token request fails.

    Serving certificates are replaced every few seconds as well. Each SDK asks with the credential that it began with
    (Java's, which would not ask again, with new ones), and the CA's file changes as the kubelet changes it.
    """
    stage = world.stage
    broker = stage.start(REPLACED, str(Path(__file__).with_name("replaceable.py")))
    with stage.volume(REPLACED) as ca_file:
        variables = stage.variables(broker, world.cart, world.reader, ca_file)
        programs = {sdk.title: start(sdk, variables) for sdk in available()}
        first = stage.bundle(REPLACED)
        answers: list[Answer] = []

        def step() -> None:
            for title, program in programs.items():
                program.begin(**({"new": True} if title.startswith("Java") else {"claims": CHALLENGE}))
            answers.extend(program.end() for program in programs.values())

        def is_retired() -> bool:
            step()
            return any("no longer trusted" in line.get("msg", "") for line in broker.lines())

        step()  # a busy machine takes long to start all programs
        stage.kubectl("annotate", "secret", f"{REPLACED}-ca", "podidentity.io/replace-ca=now")
        until(is_retired, "the CA is replaced")
        step()
    assert [answer for answer in answers if "token" not in answer] == []
    assert not set(_certificates(first)) & set(_certificates(stage.bundle(REPLACED)))
    assert len(answers) > ATTEMPTS * len(programs)


def _certificates(bundle: str) -> list[str]:
    return [part for part in bundle.split("-----END CERTIFICATE-----") if part.strip()]
