"""A wrong seed is refused before a lab starts, with the place of the mistake and what to do."""

import os
from pathlib import Path

import msgspec
import pytest

from podidentity.errors import ConfigurationError, UsageError
from podidentity_lab import seed
from podidentity_lab.settings import LabSettings

ROLE = "Key Vault Secrets User"
WRONG = {
    "[" * 2000: "nested too deeply",
    "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}": "a seed has no merges",
    "a: &a [x, x]\nb: &b [*a, *a]\ngroups: [*b, *b]": "Object contains unknown field `a`",
    "groups: &a [*a]": "Expected `str`, got `array` - at `$.groups[0]`",
    "users: [{name: a@b, password: 2024-13-45}]": "month must be in 1..12",
    "users: [{name: a@b, password: !!int x}]": "invalid literal for int()",
    "users: [{name: a@b, password: !!timestamp x}]": "not YAML: ",
    "users: [{name: a@b, password: !!python/object/apply:os.system [x]}]": "could not determine a constructor",
    "groups: !!binary x": "not YAML: ",
    "groups: [\x00]": "special characters are not allowed",
    "? [a]\n: b": "found unhashable key",
    "5": "Expected `object`, got `int`",
    "groups: [": "not YAML: ",
    "[1]": "Expected `object`, got `array`",
    "identitys: []": "Object contains unknown field `identitys`",
    "identities: [{name: a}]": "missing required field `group` - at `$.identities[0]`",
    "identities: [{name: a, group: g, client_id: x}]": "matching regex",
    "vaults: [{name: 1, group: g}]": "Expected `str`, got `int` - at `$.vaults[0].name`",
    "vaults: [{name: a_b, group: g}]": "matching regex",
    "vaults: [{name: abc, group: g}, {name: abc, group: h}]": "vaults has 'abc' more than once",
    "vaults: [{name: abc, group: g, keys: {k: RSA-1024}}]": "Invalid enum value 'RSA-1024'",
    "accounts: [{name: Abc, group: g}]": "matching regex",
    "accounts: [{name: abc, group: g, containers: [a_b]}]": "at `$.accounts[0].containers[0]`",
    "accounts: [{name: abc, group: g}, {name: abc, group: h}]": "accounts has 'abc' more than once",
    "accounts: [{name: abc, group: g, containers: [a-b], blobs: {c/d: x}}]": "accounts[0]: blob 'c/d' has no container",
    "accounts: [{name: abc, group: g, blobs: {d: x}}]": "matching regex",
    "vaults: [{name: abc, group: g, certificates: {web: shop}}]": "matching regex",
    "users: [{name: ada}]": "at `$.users[0].name`",
    "users: [{name: a@b}, {name: a@b}]": "users has 'a@b' more than once",
    "directory_groups: [{name: team, members: [ada]}]": "directory_groups[0]: member 'ada' is nobody; use one of clus",
    "directory_groups: [{name: ci}]\napplications: [{name: ci}]": "'ci' names two principals",
    "roles: [{role: Cook, to: cluster, scope: subscription}]": "the lab has no role 'Cook'; use one of Owner, ",
    f"roles: [{{role: {ROLE}, to: me, scope: subscription}}]": "roles[0]: to 'me' is nobody; use one of cluster",
    f"roles: [{{role: {ROLE}, to: cluster, scope: x}}]": "scope 'x' means nothing; use an ARM ID, or one of ",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40])
def test_what_is_wrong_is_named(tmp_path: Path, text: str) -> None:
    """The error is one sentence that begins with the file."""
    file = tmp_path / "seed.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as error:
        seed.read(file)
    assert str(error.value).startswith(f"--seed {file}: ")
    assert WRONG[text] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nope", "No such file"), ("folder", "Is a directory"), ("b", "no text"), ("pipe", "it is no plain file")],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str, reason: str) -> None:
    """A file that cannot be read as text is refused with the reason."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=reason):
        seed.read(tmp_path / name)


def test_the_example_of_the_docs_has_everything(tmp_path: Path) -> None:
    """The example is a seed, and no field of it is left out."""
    page = (Path(__file__).parents[3] / "docs" / "lab" / "seeds.md").read_text()
    (tmp_path / "seed.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    example = seed.read(tmp_path / "seed.yaml")
    for part in (example, *(values[0] for values in vars_of(example) if isinstance(values, list))):
        assert isinstance(part, str) or all(vars_of(part)), part


def vars_of(part: object) -> list[object]:
    """Return the values of a struct's fields."""
    return list(msgspec.structs.asdict(part).values()) if isinstance(part, msgspec.Struct) else []


def test_an_empty_seed_is_a_seed(tmp_path: Path) -> None:
    """An empty file creates nothing."""
    (tmp_path / "seed.yaml").write_text("")
    assert seed.read(tmp_path / "seed.yaml") == seed.Seed()


def test_a_saved_azure_is_not_seeded_again() -> None:
    """--seed with --state is refused, since part of the seed would be there already."""
    with pytest.raises(UsageError, match="leave --seed or --state out"):
        LabSettings("lab", state=Path("a"), seed=Path("s"))
