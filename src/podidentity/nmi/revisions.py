"""Which decisions a change in the cluster makes void: those of the pods that it concerns, and no others.

A binding or an AzureIdentity concerns the pods of its selector, an exception those of its namespace, everything else
all pods. A tenant that changes its own objects all the time has its own decisions made anew, and nobody else's.
"""

from collections.abc import Iterable

from podidentity.core.model.snapshot import Pod

NAMES_LIMIT = 4096
"""Of selectors or namespaces that are told apart: more than a node has pods of."""


class Revisions:
    """Counts changes. `latest` grows with each."""

    def __init__(self) -> None:
        self.latest = 0
        self._of_all = 0
        self._of_selectors: dict[str, int] = {}
        self._of_namespaces: dict[str, int] = {}

    def revision_of(self, pod: Pod) -> int:
        """Return a number that grows with each change that concerns `pod`."""
        return max(self._of_all, self._of_selectors.get(pod.selector, 0), self._of_namespaces.get(pod.key.namespace, 0))

    def count(self) -> None:
        """Count a change that may concern every pod."""
        self.latest += 1
        self._of_all = self.latest

    def count_selectors(self, selectors: Iterable[str]) -> None:
        """Count a change that concerns the pods of some selectors."""
        self._count_names(self._of_selectors, selectors)

    def count_namespace(self, namespace: str) -> None:
        """Count a change that concerns the pods of a namespace."""
        self._count_names(self._of_namespaces, (namespace,))

    def _count_names(self, revisions: dict[str, int], names: Iterable[str]) -> None:
        self.latest += 1
        for name in names:
            revisions[name] = self.latest
        if len(revisions) > NAMES_LIMIT:
            # What was forgotten could look unchanged later, so this counts as a change that concerns all.
            revisions.clear()
            self.count()
