"""Documents of the lab are true: the picture, the variables, the manifest, the kinds."""

import re
from pathlib import Path

import pytest

from podidentity.cli.main import main
from podidentity_lab.demo.running import STEPS
from podidentity_lab.directory import Directory
from podidentity_lab.environment import variables
from podidentity_lab.kubernetes.kinds import BUILT_IN

ROOT = Path(__file__).parents[3]


def test_the_picture_is_of_todays_demo() -> None:
    """The picture shows all steps of the demo as passed, and loads nothing from elsewhere."""
    drawn = (ROOT / "docs/demo.svg").read_text().replace("&#160;", " ")
    assert f"demo: {len(STEPS)} of {len(STEPS)} steps passed" in drawn
    assert re.findall(r"url\(.?http", drawn) == []


def test_every_variable_of_a_lab_is_documented(tmp_path: Path) -> None:
    """docs/lab.md says what each variable of a lab's shell is for."""
    names = "gateway_port tenant_id subscription_id location node_resource_group owner_client_id owner_client_secret"
    facts = ", ".join(
        f'"{name}": 1'
        for name in f"{names} cluster_client_id cluster_client_secret logs name registry identity_port".split()
    )
    (tmp_path / "lab.json").write_text(f"{{{facts}}}")
    documented = (ROOT / "docs/lab.md").read_text()
    made = {name for name in variables(Directory(tmp_path)) if name.isupper()}
    assert {name for name in made if f"`{name}`" not in documented} == set()


def test_the_manifest_is_the_one_of_deploy(capsys: pytest.CaptureFixture[str]) -> None:
    """`podidentity lab manifest` prints the manifest of deploy/."""
    with pytest.raises(SystemExit):
        main(["lab", "manifest"])
    assert capsys.readouterr().out == (ROOT / "deploy/infra/deployment-rbac.yaml").read_text()


def test_the_lab_has_the_kinds_that_its_page_lists() -> None:
    """The page lists the kinds that the lab has, so that a missing one is known before the first error."""
    text = (ROOT / "docs/lab.md").read_text().split("and no others, besides custom resources:", 1)[1].split(".", 1)[0]
    assert sorted(re.findall(r"\w+", text)) == sorted(kind.kind for kind in BUILT_IN)
