"""How the demo speaks: one line for each thing asked and answered; colours on a terminal, plain lines elsewhere."""

import re

from rich.console import Console
from rich.text import Text

_GROUP = re.compile(r"/subscriptions/[0-9a-f-]+/resourceGroups/[^/]+/providers/", re.IGNORECASE)
"""What all resource IDs of the story begin with; commands show it in full, answers do not."""


class Narrator:
    """Prints the story. Long answers are cut, never wrapped: a reader compares lines."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)

    def step(self, number: int, total: int, title: str) -> None:
        """Announce a step."""
        self._line(f"\n[{number:2}/{total}] {title}", "bold")

    def asked(self, command: str) -> None:
        """Show a command, as a person would type it."""
        self._line(f"    $ {command}", "cyan")

    def answered(self, answer: str) -> None:
        """Show what came back."""
        lines = dict.fromkeys(answer.strip().splitlines())  # kubectl repeats itself while it waits
        for line in list(lines)[:6]:
            self._line(f"      {_GROUP.sub('.../', line)[:400]}", "dim")

    def proved(self, sentence: str) -> None:
        """Say what the step showed."""
        self._line(f"    ok  {sentence}", "green")

    def failed(self, sentence: str) -> None:
        """Say what went wrong, what was expected and where to look."""
        self._line(f"    FAILED  {sentence}", "bold red")

    def end(self, sentence: str) -> None:
        """Say what became of the whole run."""
        self._line(f"\n{sentence}", "bold")

    def say(self, sentence: str) -> None:
        """Print a plain line."""
        self._line(sentence, "")

    def _line(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style))
