"""Draws docs/demo.svg: a real run of the demo, of which the most interesting steps are shown.

python tools/picture.py    runs the demo in a fresh lab; writes nothing unless every step passed
"""

import re
import sys
from pathlib import Path

from rich.console import Console

from podidentity_lab.demo import elsewhere, promises, proofs, running, story
from podidentity_lab.demo.narration import Narrator

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "demo.svg"
WIDTH = 116
PICTURE_STEPS = (
    story.deploy_app,
    story.fetch_secret,
    proofs.without_the_label,
    promises.binding_deleted,
    promises.nmi_comes_and_goes,
    elsewhere.two_namespaces,
)


class Recorder(Narrator):
    """A narrator that prints nothing and draws the steps in `PICTURE_STEPS` into the picture."""

    def __init__(self, picture: Console) -> None:
        super().__init__(picture)
        self.is_visible = True

    def step(self, number: int, total: int, title: str) -> None:
        """Announce a step; mark with dots where steps are left out."""
        is_visible = dict(running.STEPS)[title] in PICTURE_STEPS
        if self.is_visible and not is_visible:
            self.say("\n        ...")
        self.is_visible = is_visible
        super().step(number, total, title)

    def end(self, sentence: str) -> None:
        """Draw the last sentence: it is part of every picture."""
        self.is_visible = True
        super().end(sentence)

    def _line(self, text: str, style: str) -> None:
        if self.is_visible:
            for line in text.split("\n"):
                super()._line(line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}...", style)


def main() -> int:
    """Run the demo and draw it; return the exit status of the demo."""
    with Path("/dev/null").open("w") as null:
        picture = Console(record=True, width=WIDTH, file=null, force_terminal=True, highlight=False, soft_wrap=True)
        recorder = Recorder(picture)
        recorder.say("$ make demo")
        status = running.run(narrator=recorder)
        if status == 0:
            svg = picture.export_svg(title="make demo")
            # A picture in a README fetches nothing: the reader's own monospace font will do.
            svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
            PICTURE.write_text(svg.replace("font-family: Fira Code, monospace", "font-family: monospace"))
    print(f"{PICTURE.relative_to(ROOT)} is drawn" if status == 0 else "the demo failed; the picture stays as it was")
    return status


if __name__ == "__main__":
    sys.exit(main())
