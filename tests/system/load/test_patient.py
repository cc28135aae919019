"""The soak's client notices wrong and lost tokens, so that its zeroes mean something."""

import base64
import json
from typing import Any

import pytest

from system.load import patient

VAULT = "https://r1.vault.azure.net"


class Answers(patient.Client):
    """A client that gets the answers of a list, in order."""

    def __init__(self, *answers: tuple[int, dict[str, Any]] | OSError) -> None:
        super().__init__()
        self._answers = list(answers)

    async def ask(self, target: str) -> tuple[int, dict[str, Any]]:
        """Return the next answer."""
        assert target.endswith(VAULT)
        match self._answers.pop(0):
            case OSError() as error:
                raise error
            case answer:
                return answer


def token(owner: str, resource: str = VAULT) -> tuple[int, dict[str, Any]]:
    """Return an answer with a token of its own."""
    claims = json.dumps({"appid": owner, "aud": resource}).encode()
    return 200, {"access_token": f"e30.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.x"}


async def after(*answers: tuple[int, dict[str, Any]] | OSError) -> dict[str, Any]:
    """Return the counts of a pod of the identity `own` that asked once and got these answers."""
    pod = patient.Pod("own")
    await pod.ask(Answers(*answers), VAULT)
    return pod.told()


async def test_its_own_token_is_right() -> None:
    """The pod's own token is counted with its time, and nothing else is."""
    told = await after(token("own"))
    assert (told["wrong"], told["lost"], sum(told["times"].values())) == ([], [], 1)


@pytest.mark.parametrize("answer", [token("other"), token("own", "https://r2.vault.azure.net")])
async def test_anybody_elses_token_is_wrong(answer: tuple[int, dict[str, Any]]) -> None:
    """A token of another identity, or for another resource, is counted as wrong."""
    assert len((await after(answer))["wrong"]) == 1


async def test_a_refusal_and_a_broken_connection_are_asked_again() -> None:
    """Both are counted and followed by another request, whose token is right."""
    told = await after((503, {}), ConnectionResetError(), (503, {}), token("own"))
    assert (told["again"], told["broken"], told["wrong"], told["lost"]) == ({503: 2}, 1, [], [])


async def test_an_answer_that_never_comes_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without an answer is counted as lost when its time is over."""
    monkeypatch.setattr(patient, "GIVE_UP_SECONDS", 0.0)
    assert len((await after())["lost"]) == 1
