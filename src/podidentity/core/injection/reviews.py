"""AdmissionReview: what the API server asks of a webhook, and what is answered.

kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers. Versions v1 and v1beta1 differ in
nothing that is used here.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from podidentity.core.injection.rules import USE_LABEL
from podidentity.core.injection.shapes import WORKLOADS, shape_of
from podidentity.core.injection.wishes import Denial

_VERSIONS = frozenset({"admission.k8s.io/v1", "admission.k8s.io/v1beta1"})


class Review(NamedTuple):
    """One question: may this object be created? `version` is that of the answer."""

    version: str
    uid: str
    namespace: str
    kind: str
    content: Mapping[str, Any]

    @property
    def annotations(self) -> Mapping[str, str]:
        """Those of the object."""
        return _texts(self.content, "annotations")

    @property
    def account(self) -> str:
        """The name of a pod's service account."""
        return str((self.content.get("spec") or {}).get("serviceAccountName") or "default")


def parse_review(body: bytes) -> Review | None:
    """Return the question in a body; None when it is none, or its object has not the form of its kind.

    The API server sends objects as it has checked them; others may connect as well.
    """
    try:
        review = msgspec.json.decode(body)
        request, version = review["request"], review["apiVersion"]
        content = request["object"]
        kind = request["kind"]["kind"]
        uid = request["uid"]
        msgspec.convert(content, shape_of(kind))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if version not in _VERSIONS or not isinstance(content, dict) or not isinstance(uid, str):
        return None
    return Review(version, uid, str(request.get("namespace") or ""), str(kind), content)


def allow(review: Review, patch: Sequence[Mapping[str, Any]] = (), warnings: Sequence[str] = ()) -> bytes:
    """Return the answer that lets an object pass, changed by a JSON patch."""
    response: dict[str, Any] = {"allowed": True}
    if patch:
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(patch).encode()).decode()}
    if warnings:
        response["warnings"] = list(warnings)
    return _answer(review, response)


def deny(review: Review, denial: Denial) -> bytes:
    """Return the answer that refuses an object."""
    status = {"status": "Failure", "message": denial.message, "reason": "BadRequest", "code": 400}
    return _answer(review, {"allowed": False, "status": status})


def misplaced_label(review: Review) -> str | None:
    """Return a warning when the label stands where it does nothing; None where it does, or is not."""
    if _texts(review.content, "labels").get(USE_LABEL) != "true":
        return None
    if review.kind == "ServiceAccount":
        return f"label {USE_LABEL} does nothing on a service account; put it on the pods, and annotations here"
    if review.kind not in WORKLOADS or _texts(_template(review), "labels").get(USE_LABEL) == "true":
        return None
    return f"label {USE_LABEL} does nothing on a {review.kind}; put it into its pod template's metadata.labels"


def _template(review: Review) -> Mapping[str, Any]:
    spec = review.content.get("spec") or {}
    if review.kind == "CronJob":
        spec = (spec.get("jobTemplate") or {}).get("spec") or {}
    template = spec.get("template")
    return template if isinstance(template, dict) else {}


def _texts(content: Mapping[str, Any], field: str) -> Mapping[str, str]:
    texts = (content.get("metadata") or {}).get(field) or {}
    return {str(key): str(value) for key, value in texts.items()}


def _answer(review: Review, response: Mapping[str, Any]) -> bytes:
    document = {"apiVersion": review.version, "kind": "AdmissionReview", "response": {"uid": review.uid, **response}}
    return json.dumps(document).encode()
