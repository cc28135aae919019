"""What a service account token says of its pod."""

import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest

from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.service_account_tokens import BoundPod, bound_pod

POD = {"namespace": "team-a", "pod": {"name": "web", "uid": "u1"}}


def token(claims: Any) -> str:
    """Build a token with these claims and any signature."""
    part = urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{part}.c2ln"


def test_the_pod_of_a_bound_token() -> None:
    """A bound token names its pod, the pod's namespace and its UID."""
    assert bound_pod(token({"kubernetes.io": POD})) == BoundPod(ObjectKey("team-a", "web"), "u1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "e30.e30",
        "e30.!.c2ln",
        "e30.W10.c2ln",
        token({}),
        token([]),
        token({"kubernetes.io": "x"}),
        token({"kubernetes.io": {"namespace": "team-a"}}),
        token({"kubernetes.io": {"namespace": "team-a", "pod": "web"}}),
        token({"kubernetes.io": {"pod": POD["pod"]}}),
        token({"kubernetes.io": {**POD, "pod": {"name": "web"}}}),
        token({"kubernetes.io": {**POD, "pod": {"name": "", "uid": "u1"}}}),
        token({"kubernetes.io": {**POD, "namespace": 1}}),
        token({"kubernetes.io": {**POD, "namespace": "\ud800"}}),
        token({"kubernetes.io": {**POD, "namespace": "a\nINFO audit: status=200"}}),
        token({"kubernetes.io": {**POD, "namespace": "../a"}}),
        token({"kubernetes.io": {**POD, "pod": {"name": "web\n", "uid": "u1"}}}),
        token({"kubernetes.io": {**POD, "pod": {"name": "w" * 254, "uid": "u1"}}}),
        token({"kubernetes.io": {**POD, "pod": {"name": "web", "uid": "u\udfff"}}}),
        token({"kubernetes.io": {**POD, "pod": {"name": "web", "uid": "u" * 65}}}),
    ],
)
def test_what_names_no_pod(text: str) -> None:
    """A text that is no token, and a token that is bound to no pod, name none."""
    assert bound_pod(text) is None
