"""The site has every page, a broken link fails its build, and its search finds the words of pages."""

import json
import shutil
from pathlib import Path

import pytest
import site_of_docs as site

REPOSITORY = Path(__file__).parents[3]
pytest.importorskip("zensical", reason="zensical is not installed; run make install")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy docs/ to a folder with a build directory of its own; return the folder."""
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    (tmp_path / "build").mkdir()
    for name, path in {
        "DOCS": tmp_path / "docs",
        "BUILD": tmp_path / "build",
        "SOURCE": tmp_path / "build/site-source",
        "CONFIGURATION": tmp_path / "build/zensical.toml",
    }.items():
        monkeypatch.setattr(site, name, path)
    return tmp_path


def test_every_page_is_built_and_found(copy: Path) -> None:
    """Every page is built, and the search finds a page by its words."""
    assert site.main() == 0
    pages = list((copy / "docs").rglob("*.md"))
    assert len(list((copy / "build/site").rglob("index.html"))) == len(pages)
    entries = json.loads((copy / "build/site/search.json").read_text())["items"]
    assert any("nmi_redirect_stands" in entry["text"] for entry in entries)


def test_a_link_that_leads_nowhere_breaks_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link to a page that does not exist fails the build."""
    page = copy / "docs/lab.md"
    page.write_text(page.read_text() + "\n[gone](concepts/gone.md)\n")
    assert site.main() != 0
    assert "page does not exist" in capsys.readouterr().err


def test_a_page_of_no_section_is_refused(copy: Path) -> None:
    """A page that is in no section fails the build: readers would not find it."""
    (copy / "docs/stray.md").write_text("# Stray\n")
    with pytest.raises(SystemExit, match=r"docs/stray\.md: it is in no section"):
        site.main()


def test_links_that_leave_docs_lead_to_the_projects_home() -> None:
    """Links to files outside docs/ lead to the project's home; links between pages stay."""
    text = "[a](../../README.md) [b](../lab.md#x) [c](../../deploy/infra) [d](https://example.org)"
    home = site.home()
    assert site.rewrite(text, Path("concepts")) == (
        f"[a]({home}/blob/main/README.md) [b](../lab.md#x) [c]({home}/tree/main/deploy/infra) [d](https://example.org)"
    )
