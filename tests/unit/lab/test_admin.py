"""The demo's administrator changes machines that MIC changes at the same time."""

import pytest

from podidentity.errors import LabError
from podidentity_lab.demo import admin

BUSY = '409: {"error":{"code":"OperationNotAllowed","message":"Another change of \'ss\' is under way; wait."}}'


def test_a_change_waits_for_another_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change waits while another one is under way, since ARM refuses two at a time."""
    monkeypatch.setattr(admin, "AGAIN_SECONDS", 0.0)
    answers = [BUSY, BUSY, ""]

    def change() -> None:
        if told := answers.pop(0):
            raise LabError(told)

    admin.once_free(change)
    assert answers == []


@pytest.mark.parametrize(("told", "patience"), [("404: no such scale set", 60.0), (BUSY, -1.0)])
def test_what_no_waiting_helps_is_told(monkeypatch: pytest.MonkeyPatch, told: str, patience: float) -> None:
    """Another error is raised at once, and this one when the patience is over."""
    monkeypatch.setattr(admin, "PATIENCE_SECONDS", patience)

    def change() -> None:
        raise LabError(told)

    with pytest.raises(LabError, match=told[:3]):
        admin.once_free(change)
