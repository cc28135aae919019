"""Writes docs/reference/flags.md from the flag tables of both daemons, or checks that it is in step.

python tools/reference.py            write it when it has changed
python tools/reference.py --check    write nothing; exit 1 when it is stale
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from podidentity.cli import mic, nmi
from podidentity.cli.flags import COMMON, Flag

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "flags.md"
INTRODUCTION = """\
# Flags of NMI and MIC

Written by tools/reference.py from the tables that the daemons themselves read. Flags marked *new* are unknown to
aad-pod-identity; flags marked *no effect* are accepted for existing manifests. Switches take `true` or `false`; alone
they mean `true`. Durations are written as in Go: `90s`, `1h30m`.
"""


def main(arguments: Sequence[str]) -> int:
    """Write or check; the exit status."""
    parser = argparse.ArgumentParser(description="Write docs/reference/flags.md, or check that it is in step.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when it is stale")
    check = parser.parse_args(arguments).check
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    if check:
        print("docs/reference/flags.md is stale; run: python tools/reference.py", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print("wrote docs/reference/flags.md")
    return 0


def page() -> str:
    """The whole page."""
    sections = {
        "NMI": [flag for flag in nmi.TABLE if flag not in COMMON],
        "MIC": [flag for flag in mic.TABLE if flag not in COMMON],
        "Both": list(COMMON),
    }
    return INTRODUCTION + "".join(_section(title, flags) for title, flags in sections.items())


def _section(title: str, flags: Sequence[Flag]) -> str:
    rows = "".join(_row(flag) for flag in flags)
    return f"\n## {title}\n\n| flag | default | meaning |\n|---|---|---|\n{rows}"


def _row(flag: Flag) -> str:
    marks = ("*new*. " if flag.ours else "") + ("" if flag.effect else "*no effect*. ")
    default = f"`{flag.default}`" if flag.default else ""
    return f"| `--{flag.name}` | {default} | {marks}{flag.text.replace('|', '/')} |\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
