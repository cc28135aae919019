"""Service account tokens as their holders can read them: JWTs (RFC 7519), whose signature nobody has checked here.

Claims: kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin.
"""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.object_names import is_label, is_subdomain

JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
"""The form of a signed token."""
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")
"""Of an object: a GUID."""


class BoundPod(NamedTuple):
    """The pod that a token says it is bound to."""

    key: ObjectKey
    uid: str


def read_part(text: str) -> Mapping[str, Any] | None:
    """Return one of the two JSON objects of a token, its header or its claims; None when it is none."""
    try:
        content = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def bound_pod(token: str) -> BoundPod | None:
    """Return the pod that a token names; None when it names none. True only once the signature is checked.

    What cannot be the name of a pod is none: whoever made the token up may have chosen it for logs and messages.
    """
    claims = read_part(token.split(".")[1]) if JWT.fullmatch(token) else None
    place = claims.get("kubernetes.io") if claims is not None else None
    pod = place.get("pod") if isinstance(place, dict) else None
    if not isinstance(place, dict) or not isinstance(pod, dict):
        return None
    namespace, name, uid = place.get("namespace"), pod.get("name"), pod.get("uid")
    if not (isinstance(namespace, str) and isinstance(name, str) and isinstance(uid, str)):
        return None
    if not (is_label(namespace) and is_subdomain(name) and _UID.fullmatch(uid)):
        return None
    return BoundPod(ObjectKey(namespace, name), uid)
