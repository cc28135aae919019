"""How much a template may make the lab compute: few characters of a template can mean more text than any memory holds.

Limits of ARM's own: learn.microsoft.com/azure/azure-resource-manager/templates/best-practices#template-limits.
"""

from typing import Any


class TemplateError(Exception):
    """What ARM refuses of a template; the message is one sentence, for the error `InvalidTemplate`."""


LONGEST_TEXT = 131_072
"""Characters of one text that an expression yields, as in Azure."""
LONGEST_EXPRESSION = 24_576
"""Characters of one expression, as in Azure."""
_INTEGERS = range(-(2**63), 2**63)
_CHARACTERS_OF_A_UNIT = 32
UNITS = 3_000_000
"""Of one template: its values, nodes of expressions, and the elements and pieces of 32 characters that those yield.

Spending all of them takes some seconds, and at most a few hundred MB.
"""


class Budget:
    """What is left of a template's `UNITS`."""

    def __init__(self, units: int = UNITS) -> None:
        self._units = units

    def spend(self, units: int) -> None:
        """Take units. Raises `TemplateError` when there are not so many left."""
        self._units -= units
        if self._units < 0:
            raise TemplateError("The template is too large: its loops and expressions yield more than the lab takes.")

    def charge_bytes(self, size: int) -> None:
        """Take the units of a request of this size: what it makes is kept. Raises `TemplateError`."""
        self.spend(size // _CHARACTERS_OF_A_UNIT)

    def charge(self, value: Any) -> Any:
        """Take the units that a value of an expression costs, and return it. Raises `TemplateError`.

        What stands in it several times counts as often, since that is how it is written.
        """
        pending = [value]
        while pending:
            item = pending.pop()
            self.spend(1)
            match item:
                case str():
                    self.spend(check_length(len(item)) // _CHARACTERS_OF_A_UNIT)
                case int() if item not in _INTEGERS:
                    raise TemplateError("The template has a number that 64 bits do not hold.")
                case list():
                    self.spend(len(item) // _CHARACTERS_OF_A_UNIT)  # before they are pending
                    pending += item
                case dict():
                    self.spend(len(item) // _CHARACTERS_OF_A_UNIT)
                    pending += item.values()
        return value


def check_length(characters: int) -> int:
    """Return how long a text will be. Raises `TemplateError` for one that is too long, before it is made."""
    if characters > LONGEST_TEXT:
        raise TemplateError(
            f"The template language expression yields a text of {characters} characters; the limit is {LONGEST_TEXT}."
        )
    return characters
