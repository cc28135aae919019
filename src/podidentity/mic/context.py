"""What one term as leader works with. `term` runs it and `sync` plans in it; both are made from the same value."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from podidentity.core.model.policy import Policy
from podidentity.mic.changes import Changes
from podidentity.mic.ports import Ports
from podidentity.mic.settings import Settings


@dataclass(frozen=True, slots=True)
class TermContext:
    """What is outside MIC (`ports`), what changed there, and what the decisions of this term depend on."""

    ports: Ports
    changes: Changes
    policy: Policy
    settings: Settings
    cycle: Callable[[], AbstractContextManager[None]] = nullcontext
    """Makes the context in which each plan is made and carried out: metrics measure it."""
