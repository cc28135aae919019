"""How the demo prints: one line for each command and each answer; colours on a terminal, plain lines elsewhere."""

import re

from rich.console import Console
from rich.text import Text

_GROUP = re.compile(r"/subscriptions/[0-9a-f-]+/resourceGroups/[^/]+/providers/", re.IGNORECASE)
"""How all resource IDs of the story begin; commands show it in full, answers leave it out."""


class Narrator:
    """Prints the story. Long answers are cut, never wrapped: a reader compares lines."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)

    def step(self, number: int, total: int, title: str) -> None:
        """Announce a step."""
        self._line(f"\n[{number:2}/{total}] {title}", "bold")

    def show_command(self, command: str) -> None:
        """Show a command, as a person would type it."""
        self._line(f"    $ {command}", "cyan")

    def show_answer(self, answer: str) -> None:
        """Show what came back."""
        lines = dict.fromkeys(answer.strip().splitlines())  # kubectl repeats itself while it waits
        for line in list(lines)[:6]:
            self._line(f"      {_GROUP.sub('.../', line)[:400]}", "dim")

    def show_proof(self, sentence: str) -> None:
        """Print what the step has proven."""
        self._line(f"    ok  {sentence}", "green")

    def show_failure(self, sentence: str) -> None:
        """Print what went wrong, what was expected and where to look."""
        self._line(f"    FAILED  {sentence}", "bold red")

    def end(self, sentence: str) -> None:
        """Print the outcome of the whole run."""
        self._line(f"\n{sentence}", "bold")

    def say(self, sentence: str) -> None:
        """Print a plain line."""
        self._line(sentence, "")

    def _line(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style))
