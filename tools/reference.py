"""Writes the pages of docs/reference that are made from the code, or checks that they are in step.

python tools/reference.py            write what has changed
python tools/reference.py --check    write nothing; exit 1 and name each page that is stale
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from references import answers, chart, commands, environment, errors, events, flags, metrics, objects

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    f"docs/reference/{module.__name__.rpartition('.')[2]}.md": module.page
    for module in (answers, chart, commands, environment, errors, events, flags, metrics, objects)
}


def main(arguments: Sequence[str]) -> int:
    """Write or check; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the generated pages of docs/reference, or check them.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when one is stale")
    check = parser.parse_args(arguments).check
    texts = {name: page() for name, page in PAGES.items()}
    stale = [name for name, text in texts.items() if _current_text(REPOSITORY / name) != text]
    for name in stale:
        if check:
            print(f"{name} is stale; run: python tools/reference.py", file=sys.stderr)
        else:
            (REPOSITORY / name).write_text(texts[name], encoding="utf-8")
            print(f"wrote {name}")
    return int(check and bool(stale))


def _current_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
