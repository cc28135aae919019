"""Builds the documentation site from docs/ with zensical, strict, into build/site: `make site`.

The pages stand where readers of the repository expect them. For the site, they are copied; links that leave docs/ lead
to the repository's home, and the navigation follows from the folders.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
BUILD = REPOSITORY / "build"
SOURCE = BUILD / "site-source"
CONFIGURATION = BUILD / "zensical.toml"
SECTIONS = {
    "Tutorial": ("tutorial/*.md",),
    "How to": ("migrate/*.md", "configure/*.md", "troubleshoot/*.md", "lab.md", "lab/*.md", "contribute/*.md"),
    "Reference": ("reference/*.md", "compatibility.md", "interop.md", "performance.md"),
    "Explanation": ("concepts/*.md", "decisions/README.md", "decisions/*.md"),
    "Runbooks": ("runbooks/README.md", "runbooks/*.md"),
}
"""The four kinds of documentation, and the alerts' pages; the order of pages is that of the patterns."""
_LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)]*)?(\))")
_FORM = """\
[project]
site_name = "podidentity"
site_description = "Azure managed identities for Kubernetes pods, without a secret in sight"
repo_url = "{home}"
repo_name = "podidentity"
docs_dir = "site-source"
site_dir = "site"
copyright = "MIT licence"
nav = [
{nav}]

[project.theme]
features = ["navigation.tabs", "navigation.top", "content.code.copy", "search.highlight"]
language = "en"
font = false

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"
toggle.icon = "lucide/sun"
toggle.name = "Dark"

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"
toggle.icon = "lucide/moon"
toggle.name = "Light"
"""


def main() -> int:
    """Copy, write the configuration, build; return zensical's exit status."""
    copy_pages()
    CONFIGURATION.write_text(configuration())
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", str(CONFIGURATION)]
    process = subprocess.run(command, cwd=BUILD, capture_output=True, text=True, check=False)
    if process.returncode or not (BUILD / "site/index.html").is_file():
        print(process.stdout + process.stderr, file=sys.stderr)
        return process.returncode or 1
    print(f"build/site: {len(list(SOURCE.rglob('*.md')))} pages; open build/site/index.html")
    return 0


def copy_pages() -> None:
    """Copy docs/ to the site's source; links that leave docs/ become addresses."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(DOCS, SOURCE)
    for page in SOURCE.rglob("*.md"):
        page.write_text(rewrite(page.read_text(), page.relative_to(SOURCE).parent))


def rewrite(text: str, folder: Path) -> str:
    """Return a page's text for the site; `folder` is its place below docs/."""

    def target(link: re.Match[str]) -> str:
        path = os.path.normpath(DOCS / folder / link[2])
        if Path(path).is_relative_to(DOCS):
            return link[0]
        name = Path(path).relative_to(DOCS.parent)
        kind = "tree" if (REPOSITORY / name).is_dir() else "blob"
        return f"{link[1]}{home()}/{kind}/main/{name}{link[3] or ''}{link[4]}"

    return _LINK.sub(target, text)


def configuration() -> str:
    """Return zensical's configuration, with every page in one section."""
    nav = '  {"Home" = "index.md"},\n'
    for title, pages in sections().items():
        nav += f'  {{"{title}" = [\n' + "".join(f'    "{page}",\n' for page in pages) + "  ]},\n"
    return _FORM.format(home=home(), nav=nav)


def sections() -> dict[str, list[str]]:
    """Return the pages of each section. Raise `SystemExit` for a page that is in none: nobody would find it."""
    pages = {title: list(dict.fromkeys(_pages(patterns))) for title, patterns in SECTIONS.items()}
    names = {name for section in pages.values() for name in section} | {"index.md"}
    orphans = sorted({str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - names)
    if orphans:
        raise SystemExit(
            f"docs/{orphans[0]}: it is in no section of the site; move it, or name it in tools/site_of_docs.py"
        )
    return pages


def _pages(patterns: tuple[str, ...]) -> Iterator[str]:
    for pattern in patterns:
        yield from sorted(str(path.relative_to(DOCS)) for path in DOCS.glob(pattern))


def home() -> str:
    """Return the address of the project, from pyproject.toml."""
    urls: dict[str, str] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["urls"]
    return urls["Source"]


if __name__ == "__main__":
    sys.exit(main())
