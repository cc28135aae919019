"""Which identities a namespace may name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import make
from podidentity.core import allowing, assigning, matching
from podidentity.core.identities import ObjectKey

ID = make.resource_id("reader")
SUBSCRIPTION = f"/subscriptions/{make.SUBSCRIPTION}"
PROVIDER = "providers/Microsoft.ManagedIdentity/userAssignedIdentities"


@pytest.mark.parametrize(
    "glob",
    [
        ID,
        ID.upper(),
        f"  {ID} ",
        f"{SUBSCRIPTION}/resourcegroups/apps/{PROVIDER}/*",
        f"{SUBSCRIPTION}/resourcegroups/*/{PROVIDER}/rea*",
        f"{SUBSCRIPTION}/resourcegroups/ap*s/{PROVIDER}/*ead*r",
        f"/*/*/*/*/{PROVIDER}/**reader",
    ],
)
def test_a_glob_covers_the_whole_resource_id(glob: str) -> None:
    """`*` stands for any part of one segment, nothing included; case and blanks do not count."""
    assert allowing.fits(glob, ID)


@pytest.mark.parametrize(
    "glob",
    [
        "",
        "*",
        "reader",
        f"{SUBSCRIPTION}/*",
        f"{SUBSCRIPTION}/resourcegroups/*",
        f"{SUBSCRIPTION}/resourcegroups/apps/{PROVIDER}",
        f"{SUBSCRIPTION}/resourcegroups/apps/{PROVIDER}/read",
        f"{SUBSCRIPTION}/resourcegroups/apps/{PROVIDER}/reade?",
        f"{SUBSCRIPTION}/resourcegroups/apps/{PROVIDER}/readerr*",
        f"{SUBSCRIPTION}/resourcegroups/apps/{PROVIDER}/re*er*er",
        f"{SUBSCRIPTION}/resourcegroups/apps/{PROVIDER}/r*x*r",
        f"{ID}/*",
    ],
)
def test_a_glob_covers_nothing_else(glob: str) -> None:
    """No part, no prefix, no character class; a star never reaches over a slash."""
    assert not allowing.fits(glob, ID)


def test_only_ascii_letters_fold() -> None:
    """The Kelvin sign lower-cases to `k` in Unicode; it is not that letter to Azure."""
    assert not allowing.fits(make.resource_id("kiosk"), make.resource_id("\u212aiosk"))


@given(st.text("ab*", max_size=8), st.text("abAB/", max_size=8))
def test_a_glob_means_the_plain_regular_expression(glob: str, text: str) -> None:
    """The linear matcher agrees with the obvious one."""
    obvious = "[^/]*".join(map(re.escape, glob.lower().split("*")))
    assert allowing.fits(glob, text) == bool(re.fullmatch(obvious, text.lower()))


def test_a_namespace_without_the_annotation_is_allowed_nothing() -> None:
    """The sentence names the namespace, the identity and the annotation."""
    why = allowing.refusal(make.identity(), {"other": ID})
    assert why is not None
    assert f"namespace default is not allowed the identity {ID}" in why
    assert allowing.ANNOTATION in why


def test_any_glob_of_the_annotation_allows() -> None:
    """They are separated by commas."""
    assert allowing.refusal(make.identity(), {"default": f"/subscriptions/x,{ID}"}) is None


def test_the_name_of_the_object_does_not_count() -> None:
    """Tenants choose it: an allowed name with a foreign resource ID is refused."""
    disguised = make.identity("reader", resource_id=make.resource_id("admin"))
    assert allowing.refusal(disguised, {"default": ID}) is not None


@pytest.mark.parametrize("resource_id", ["", "nonsense", f"{ID}/x"])
@pytest.mark.parametrize("kind", [0, 7])
def test_an_identity_without_a_resource_id_is_refused(kind: int, resource_id: str) -> None:
    """A client ID alone says nothing of whose it is, and an unknown type is not trusted either."""
    why = allowing.refusal(make.identity(type=kind, resource_id=resource_id), {"default": "*," + ID})
    assert why is not None
    assert "set its resourceID" in why


@pytest.mark.parametrize("kind", [1, 2])
def test_service_principals_are_not_concerned(kind: int) -> None:
    """Their Secret is what they are."""
    assert allowing.refusal(make.identity(type=kind, resource_id=""), {}) is None


def test_a_refused_binding_gives_nothing_and_says_why() -> None:
    """The reason is the same wherever it is shown."""
    one = make.snapshot([make.pod()], [make.identity()], [make.binding()])
    wanted = assigning.wanted(one, make.policy(allow_list=True))
    assert not wanted.assignments
    (skipped,) = wanted.skipped
    assert (skipped.binding, skipped.code) == (ObjectKey("default", "reader-binding"), "NotAllowed")
    assert skipped.about == "binding default/reader-binding for pod default/web"


def test_the_namespace_of_the_binding_decides() -> None:
    """A pod elsewhere that the binding selects may use what the binding's namespace is allowed."""
    pod = make.pod(namespace="team-a")
    identities = {make.identity().key: make.identity()}
    selections = matching.Selections([make.binding()], identities, force_namespaced=False, allowed={"default": ID})
    assert [type(one) for one in selections.of(pod)] == [matching.Match]
