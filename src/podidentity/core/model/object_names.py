"""The names that Kubernetes lets objects have (kubernetes.io/docs/concepts/overview/working-with-objects/names)."""

import re

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL.pattern}(?:\.{_LABEL.pattern})*")
_SUBDOMAIN_CHARACTERS = 253


def is_label(text: str) -> bool:
    """Whether a namespace may have this name (RFC 1123)."""
    return _LABEL.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    """Whether a service account, a pod and most other objects may have this name (RFC 1123)."""
    return len(text) <= _SUBDOMAIN_CHARACTERS and _SUBDOMAIN.fullmatch(text) is not None
