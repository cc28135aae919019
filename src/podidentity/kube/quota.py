"""How many objects of one namespace a watch keeps: whoever may create objects must not fill a daemon's memory."""

import logging
from collections import Counter

from podidentity.core.model.identities import ObjectKey

NAMESPACE_OBJECTS = 10_000
"""Far more than an identity for each pod: some 10 MB, for each kind that tenants write and every NMI keeps."""

_log = logging.getLogger(__name__)


class NamespaceQuota:
    """Counts the objects that are kept of each namespace, at most `limit`; 0 sets no limit. `name` is for the log."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._keys: set[ObjectKey] = set()
        self._counts: Counter[str] = Counter()
        self.full: set[str] = set()
        """Namespaces of which an object was not kept."""

    def take(self, key: ObjectKey) -> bool:
        """Count an object and return whether it is to be kept. The first one of a namespace that is not is logged."""
        namespace = key.namespace
        if not self._limit or key in self._keys:
            return True
        if self._counts[namespace] >= self._limit:
            if namespace not in self.full:
                self.full.add(namespace)
                _log.warning(
                    "namespace %s has more than %d %s: the others are ignored; delete what is not needed there, "
                    "and annotate what is ignored wrongly",
                    namespace,
                    self._limit,
                    self._name,
                )
            return False
        self._keys.add(key)
        self._counts[namespace] += 1
        return True

    def give_back(self, key: ObjectKey) -> None:
        """Forget an object that is gone: the next one of its namespace that is created or changed has its place."""
        if key in self._keys:
            self._keys.remove(key)
            self._counts[key.namespace] -= 1
            if not self._counts[key.namespace]:
                del self._counts[key.namespace]
