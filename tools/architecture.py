"""Writes ARCHITECTURE.md's list of modules: one line each, from the first line of its docstring.

architecture.py           write the list
architecture.py --check   exit 1 when the list is not what the tree says
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- modules: written by tools/architecture.py -->", "<!-- end of modules -->"
SOURCES = (ROOT / "src" / "podidentity", ROOT / "lab" / "src" / "podidentity_lab")


def main() -> int:
    """Write the page, or only compare it; return the exit status."""
    page = PAGE.read_text()
    head, _, after_begin = page.partition(BEGIN)
    tail = after_begin.partition(END)[2]
    text = f"{head}{BEGIN}\n\n{''.join(packages())}{END}{tail}"
    if sys.argv[1:] == ["--check"]:
        if text != page:
            print("ARCHITECTURE.md is not in step: run make fix", file=sys.stderr)
        return int(text != page)
    PAGE.write_text(text)
    return 0


def packages() -> Iterator[str]:
    """Return the section of each package, a table of its modules, in the order of the tree."""
    for source in SOURCES:
        for folder in sorted({path.parent for path in source.rglob("*.py")}):
            modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
            if not modules:
                continue
            name = ".".join(folder.relative_to(source.parent).parts)
            yield f"### `{name}`\n\n{summary(folder / '__init__.py')}\n\n"
            yield "| module | what it does |\n|---|---|\n"
            yield from (f"| `{path.stem}` | {summary(path)} |\n" for path in modules)
            yield "\n"


def summary(path: Path) -> str:
    """Return the first line of a module's docstring."""
    text = (ast.get_docstring(ast.parse(path.read_text())) if path.exists() else "") or ""
    return text.partition("\n")[0].replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
