"""Files around the code name only what exists: workflows, forms, owners, runbooks."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[3]
GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ALERTS = sorted(REPOSITORY.glob("charts/*/files/alerts*.yaml"))
MAKE = re.compile(r"^make ([a-z]+)", re.MULTILINE)


def targets() -> set[str]:
    """Return the targets that `make` lists."""
    return set(re.findall(r"^([a-z]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def load(path: Path) -> Any:
    """Return a YAML file."""
    return yaml.safe_load(path.read_text())


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    """Alerts, their links, the runbooks and the runbooks' index name the same alerts."""
    alerts = {name for path in ALERTS for name in re.findall(r"- alert: (\w+)", path.read_text())}
    named = {page for path in ALERTS for page in re.findall(r"runbook: docs/runbooks/(\w+)\.md", path.read_text())}
    pages = {page.stem for page in (REPOSITORY / "docs/runbooks").glob("*.md")} - {"README"}
    index = set(re.findall(r"\]\((\w+)\.md\)", (REPOSITORY / "docs/runbooks/README.md").read_text()))
    assert len(alerts) >= 11
    assert alerts == named == pages == index


@pytest.mark.parametrize(
    "page", sorted((REPOSITORY / "docs/runbooks").glob("PodIdentity*.md")), ids=lambda page: page.stem
)
def test_a_runbook_says_where_to_look_and_what_ends_it(page: Path) -> None:
    """A runbook's title is the alert's name, and it says where to look and when the alert has ended."""
    text = page.read_text()
    assert text.startswith(f"# {page.stem}\n")
    assert "**Look**" in text
    assert "It has ended when" in text or "Each hour is a conflict" in text


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_that_there_are(path: Path) -> None:
    """Workflows call only targets of the Makefile, which developers run as well."""
    steps = [step for job in load(path)["jobs"].values() for step in job["steps"]]
    called = {target for step in steps for target in MAKE.findall(step.get("run", ""))}
    assert called <= targets()


def test_ci_runs_the_commands_of_the_readme() -> None:
    """CI's workflow and .ci/run both run `make check` and `make test`."""
    steps = [step for job in load(GITHUB / "workflows/ci.yml")["jobs"].values() for step in job["steps"]]
    called = {step.get("run") for step in steps}
    assert {"make check", "make test"} <= called
    assert {"make check", "make test"} <= set((REPOSITORY / ".ci/run").read_text().splitlines())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_no_right_that_a_job_does_not_name(path: Path) -> None:
    """A workflow has no rights of its own: each job names its rights and a time limit."""
    workflow = load(path)
    assert workflow["permissions"] == {}
    assert all({"permissions", "timeout-minutes"} <= job.keys() for job in workflow["jobs"].values())


def test_owners_are_teams_and_own_what_is_there() -> None:
    """Owners are teams, not persons, and each path exists."""
    rows = [line.split() for line in (GITHUB / "CODEOWNERS").read_text().splitlines() if line and line[0] != "#"]
    assert rows
    for path, *owners in rows:
        assert path == "*" or (REPOSITORY / path.lstrip("/")).exists(), path
        assert owners
        assert all(re.fullmatch(r"@[\w-]+/[\w-]+", owner) for owner in owners), owners


def test_updates_are_asked_for_where_there_is_something_to_update() -> None:
    """Each directory in dependabot.yml has the file of its ecosystem."""
    files = {"pip": "pyproject.toml", "gomod": "go.mod", "docker": "Dockerfile", "github-actions": ".github/workflows"}
    for update in load(GITHUB / "dependabot.yml")["updates"]:
        for directory in update.get("directories", [update.get("directory")]):
            name = files[update["package-ecosystem"]]
            assert (REPOSITORY / directory.lstrip("/") / name).exists(), directory


def test_hooks_before_a_commit_are_local() -> None:
    """Hooks run programs that `make install` has installed, so that a commit fetches nothing."""
    hooks = [
        (repo["repo"], hook) for repo in load(REPOSITORY / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
    ]
    assert {repo for repo, _ in hooks} == {"local"}
    assert all(hook["entry"].startswith(".venv/bin/") for _, hook in hooks)


def test_the_devcontainer_can_be_read_and_installs() -> None:
    """The file is JSON except for its comments, and runs `make install`."""
    text = (REPOSITORY / ".devcontainer/devcontainer.json").read_text()
    container = json.loads("\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//")))
    assert container["postCreateCommand"].endswith("make install")


def test_the_project_has_one_home() -> None:
    """All addresses begin with the project's home, so that a fork changes one address."""
    projects = [
        tomllib.loads((REPOSITORY / name).read_text())["project"] for name in ("pyproject.toml", "lab/pyproject.toml")
    ]
    home = projects[0]["urls"]["Homepage"]
    assert all(url.startswith(home) for project in projects for url in project["urls"].values())
    for page in ("ISSUE_TEMPLATE/config.yml",):
        assert set(re.findall(r"https://github\.com/[\w-]+/[\w-]+", (GITHUB / page).read_text())) == {home}


@pytest.mark.parametrize("form", sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda form: form.name)
def test_a_form_asks_in_a_form_that_can_be_shown(form: Path) -> None:
    """Each field for an answer has a label, and an ID that no other field has."""
    fields = [field for field in load(form)["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names) > 0
    assert all(field["attributes"]["label"] for field in fields)
