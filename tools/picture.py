"""Draws docs/demo.svg: a real run of the demo, of which the most telling steps are shown.

python tools/picture.py    runs the demo in a fresh lab; writes nothing unless every step passed
"""

import re
import sys
from pathlib import Path

from rich.console import Console

from podidentity.lab.demo import promises, proofs, running, story
from podidentity.lab.demo.narration import Narrator

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "demo.svg"
WIDTH = 116
SHOWN = (
    story.deploy_app,
    story.fetch_secret,
    proofs.without_the_label,
    promises.binding_deleted,
    promises.nmi_comes_and_goes,
)


class Recorder(Narrator):
    """Tells everything to nobody, and the steps in `SHOWN` to the picture, too."""

    def __init__(self, picture: Console) -> None:
        super().__init__(picture)
        self.shows = True

    def step(self, number: int, total: int, title: str) -> None:
        """Announce a step; leave a mark where some are left out."""
        shown = dict(running.STEPS)[title] in SHOWN
        if self.shows and not shown:
            self.say("\n        ...")
        self.shows = shown
        super().step(number, total, title)

    def end(self, sentence: str) -> None:
        """The last word is always shown."""
        self.shows = True
        super().end(sentence)

    def _line(self, text: str, style: str) -> None:
        if self.shows:
            for line in text.split("\n"):
                super()._line(line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}...", style)


def main() -> int:
    """Run, then draw."""
    with Path("/dev/null").open("w") as nobody:
        picture = Console(record=True, width=WIDTH, file=nobody, force_terminal=True, highlight=False, soft_wrap=True)
        recorder = Recorder(picture)
        recorder.say("$ make demo")
        status = running.run(ROOT, narrator=recorder)
        if status == 0:
            drawn = picture.export_svg(title="make demo")
            # A picture in a README fetches nothing: the reader's own typewriter font does as well.
            drawn = re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL)
            PICTURE.write_text(drawn.replace("font-family: Fira Code, monospace", "font-family: monospace"))
    print(f"{PICTURE.relative_to(ROOT)} is drawn" if status == 0 else "the demo failed; the picture stays as it was")
    return status


if __name__ == "__main__":
    sys.exit(main())
