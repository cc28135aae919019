"""The walks of ARCHITECTURE.md, and the files of podidentity in which code runs."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

REPOSITORY = Path(__file__).parent.parent
SOURCE = str(REPOSITORY / "src/podidentity") + "/"


def walk(heading: str) -> tuple[list[str], set[str]]:
    """Return the files of a walk in their order, and those that the text after the walk names."""
    text = (REPOSITORY / "ARCHITECTURE.md").read_text().partition(f"### Walk: {heading}\n")[2].partition("\n#")[0]
    return re.findall(r"^\d+\. `([\w/]+\.py)`", text, re.MULTILINE), set(
        re.findall(r"`([\w/]+\.py)`", re.split(r"^\d+\. .*\n\n", text, flags=re.MULTILINE)[-1])
    )


@contextmanager
def files_run() -> Iterator[dict[str, None]]:
    """Yield the files whose functions this thread calls in the body, in the order of their first call."""
    files: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(SOURCE):
            files.setdefault(name.removeprefix(SOURCE))

    previous = sys.getprofile()
    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(previous)
