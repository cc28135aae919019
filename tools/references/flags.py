"""docs/reference/flags.md: the flag tables of the daemons."""

import importlib
from collections.abc import Sequence

from podidentity.cli.flags import COMMON, COMPATIBILITY, Flag
from podidentity.cli.main import DAEMONS
from references.source import table

INTRODUCTION = """\
# Flags of the daemons

Written by tools/reference.py from the tables that the daemons themselves read. Flags marked *new* are unknown to
aad-pod-identity; flags marked *no effect* are accepted for existing manifests. Switches take `true` or `false`; alone
they mean `true`. Durations are written as in Go: `90s`, `1h30m`.
"""
OLD_DAEMONS = ("nmi", "mic")
"""Those that aad-pod-identity has, too: only of them some flags are new."""


def page() -> str:
    """Return the whole page."""
    common_flags = (*COMMON, *COMPATIBILITY)
    names = [*OLD_DAEMONS, *sorted(set(DAEMONS) - set(OLD_DAEMONS))]
    sections = {
        f"`podidentity {name}`": [flag for flag in flags_of(name) if flag not in common_flags] for name in names
    }
    sections["All of them"] = list(COMMON)
    sections["NMI and MIC, for existing manifests"] = list(COMPATIBILITY)
    return INTRODUCTION + "".join(f"\n## {title}\n\n{_table(flags)}" for title, flags in sections.items())


def flags_of(daemon: str) -> Sequence[Flag]:
    """Return the flags of a daemon."""
    flags: Sequence[Flag] = importlib.import_module(DAEMONS[daemon]).TABLE
    return flags


def _table(flags: Sequence[Flag]) -> str:
    return table(("flag", "default", "meaning"), [_row(flag) for flag in flags])


def _row(flag: Flag) -> tuple[str, ...]:
    marks = ("*new*. " if flag.is_new else "") + ("" if flag.effect else "*no effect*. ")
    return f"`--{flag.name}`", f"`{flag.default}`" if flag.default else "", f"{marks}{flag.text}"
