"""Which identities a namespace may name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import make
from podidentity.core.assignment import assigning
from podidentity.core.model import allow_list, matching
from podidentity.core.model.identities import ObjectKey

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
    """A `*` stands for any part of one segment or for nothing; case and blanks around do not count."""
    assert allow_list.fits(glob, ID)


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
    """Parts, prefixes and other wildcards do not cover an ID, and a `*` never covers a slash."""
    assert not allow_list.fits(glob, ID)


def test_a_look_alike_is_not_covered() -> None:
    """The Kelvin sign becomes `k` in lower case but is another letter to Azure; other letters compare without case."""
    assert not allow_list.fits(make.resource_id("kiosk"), make.resource_id("\u212aiosk"))
    assert allow_list.fits(make.resource_id("kiosk", "gr\u00f6\u00dfe"), make.resource_id("KIOSK", "GR\u00d6\u00dfE"))


@given(st.text("ab*", max_size=8), st.text("abAB/", max_size=8))
def test_a_glob_means_the_plain_regular_expression(glob: str, text: str) -> None:
    """The matcher, which takes linear time, agrees with the obvious regular expression."""
    obvious = "[^/]*".join(map(re.escape, glob.lower().split("*")))
    assert allow_list.fits(glob, text) == bool(re.fullmatch(obvious, text.lower()))


def test_a_namespace_without_the_annotation_is_allowed_nothing() -> None:
    """The refusal names the namespace, the identity and the annotation."""
    why = allow_list.refusal(make.identity(), {"other": ID})
    assert why is not None
    assert f"namespace default is not allowed the identity {ID}" in why
    assert allow_list.ANNOTATION in why


def test_any_glob_of_the_annotation_allows() -> None:
    """The annotation has globs separated by commas, of which one must match."""
    assert allow_list.refusal(make.identity(), {"default": f"/subscriptions/x,{ID}"}) is None


def test_the_name_of_the_object_does_not_count() -> None:
    """An AzureIdentity with an allowed name and a foreign resource ID is refused: tenants choose the name."""
    disguised = make.identity("reader", resource_id=make.resource_id("admin"))
    assert allow_list.refusal(disguised, {"default": ID}) is not None


@pytest.mark.parametrize("resource_id", ["", "nonsense", f"{ID}/x"])
@pytest.mark.parametrize("kind", [0, 7])
def test_an_identity_without_a_resource_id_is_refused(kind: int, resource_id: str) -> None:
    """A client ID alone does not say which identity it is; an unknown type is not trusted either."""
    why = allow_list.refusal(make.identity(type=kind, resource_id=resource_id), {"default": "*," + ID})
    assert why is not None
    assert "set its resourceID" in why


@pytest.mark.parametrize("kind", [1, 2])
def test_service_principals_are_not_concerned(kind: int) -> None:
    """Service principals are allowed: whoever has the Secret has the principal."""
    assert allow_list.refusal(make.identity(type=kind, resource_id=""), {}) is None


def test_a_refused_binding_gives_nothing_and_says_why() -> None:
    """The refused binding leads to no assignment, and is reported with its pod."""
    item = make.snapshot([make.pod()], [make.identity()], [make.binding()])
    desired = assigning.desired_assignments(item, make.policy(allow_list=True))
    assert not desired.assignments
    (skipped,) = desired.ineffective
    assert (skipped.binding, skipped.code) == (ObjectKey("default", "reader-binding"), "NotAllowed")
    assert skipped.subject == "binding default/reader-binding for pod default/web"


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        ({"default": ID}, "namespace team-a is not allowed"),
        ({"team-a": ID}, "namespace default is not allowed"),
        ({"default": ID, "team-a": ID}, ""),
    ],
)
def test_both_namespaces_must_be_allowed_the_identity(allowed: dict[str, str], refused: str) -> None:
    """Both the pod's and the binding's namespace must be allowed the identity.

    Neither the label of another team nor a binding of a foreign identity gets past the list.
    """
    pod = make.pod(namespace="team-a")
    identities = {make.identity().key: make.identity()}
    selections = matching.Selections([make.binding()], identities, force_namespaced=False, permissions=allowed)
    (result,) = selections.results_for(pod)
    assert (result.message if isinstance(result, matching.IneffectiveBinding) else "").startswith(refused)
    assert isinstance(result, matching.Match) == (not refused)
