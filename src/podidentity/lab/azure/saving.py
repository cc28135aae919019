"""The lab's Azure as text, so that a lab can be stopped and resumed. Called by `Azure.saved` and `Azure.restored`.

The text holds private keys and secrets: whoever writes it to a file gives that file to its owner alone.
"""

import msgspec

from podidentity.errors import LabError
from podidentity.lab.azure.state import State

FORMAT = 1


class _Saved(msgspec.Struct):
    format: int
    state: State


def render(state: State) -> str:
    """Everything, as JSON."""
    return msgspec.json.format(msgspec.json.encode(_Saved(FORMAT, state)), indent=1).decode()


def parse(text: str) -> State:
    """Read what `render` wrote. Raises `LabError`."""
    try:
        saved = msgspec.json.decode(text, type=_Saved)
    except msgspec.MsgspecError as error:
        told = f"the saved Azure cannot be read: {error}. Start a fresh lab, or restore the file from a copy."
        raise LabError(told) from None
    if saved.format != FORMAT:
        told = f"the saved Azure has format {saved.format}; this version reads {FORMAT}. Start a fresh lab."
        raise LabError(told)
    return saved.state
