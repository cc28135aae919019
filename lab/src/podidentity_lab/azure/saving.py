"""The lab's Azure as text, so that a lab can be stopped and resumed.

The text holds private keys and secrets: whoever writes it to a file gives that file to its owner alone.
"""

import msgspec

from podidentity.errors import LabError
from podidentity_lab.azure.state import State

FORMAT = 1


class _Document(msgspec.Struct):
    format: int
    state: State


def render(state: State) -> str:
    """Return the state as JSON."""
    return msgspec.json.format(msgspec.json.encode(_Document(FORMAT, state)), indent=1).decode()


def parse(text: str) -> State:
    """Return the state that `render` wrote. Raises `LabError`."""
    try:
        document = msgspec.json.decode(text, type=_Document)
    except msgspec.MsgspecError as error:
        message = f"the saved Azure cannot be read: {error}; start a fresh lab, or restore the file from a copy"
        raise LabError(message) from None
    if document.format != FORMAT:
        message = f"the saved Azure has format {document.format}, and this version reads {FORMAT}; start a fresh lab"
        raise LabError(message)
    return document.state
