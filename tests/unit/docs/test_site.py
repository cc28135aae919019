"""The site: every page is in it, links that lead nowhere break it, and its search knows what the pages say."""

import json
import shutil
from pathlib import Path

import pytest
import site_of_docs as site

REPOSITORY = Path(__file__).parents[3]
pytest.importorskip("zensical", reason="zensical is not installed; run make install")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of docs/ with a build directory of its own; its folder."""
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
    """A word of a page leads to it."""
    assert site.main() == 0
    pages = list((copy / "docs").rglob("*.md"))
    assert len(list((copy / "build/site").rglob("index.html"))) == len(pages)
    entries = json.loads((copy / "build/site/search.json").read_text())["items"]
    assert any("nmi_redirect_stands" in entry["text"] for entry in entries)


def test_a_link_that_leads_nowhere_breaks_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has to click on all of them."""
    page = copy / "docs/lab.md"
    page.write_text(page.read_text() + "\n[gone](concepts/gone.md)\n")
    assert site.main() != 0
    assert "page does not exist" in capsys.readouterr().err


def test_a_page_of_no_section_is_refused(copy: Path) -> None:
    """Nobody would find it."""
    (copy / "docs/stray.md").write_text("# Stray\n")
    with pytest.raises(SystemExit, match=r"docs/stray\.md: it is in no section"):
        site.main()


def test_links_that_leave_docs_lead_to_the_projects_home() -> None:
    """On the site there is no file of the repository; links inside stay."""
    text = "[a](../../README.md) [b](../lab.md#x) [c](../../deploy/infra) [d](https://example.org)"
    home = site.home()
    assert site.rewrite(text, Path("concepts")) == (
        f"[a]({home}/blob/main/README.md) [b](../lab.md#x) [c]({home}/tree/main/deploy/infra) [d](https://example.org)"
    )
