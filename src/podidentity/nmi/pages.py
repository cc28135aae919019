"""The pages of NMI's probe and metrics ports: everything for programs of this node, for pods as much as they need.

Every pod can reach both ports, so that every tenant can read what stands there: not which pods and addresses this
node has trouble with, and, unless the operator wants it so, not which namespaces ask for tokens of which resources.
"""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry

from podidentity.serving.metrics import render
from podidentity.serving.probes import METRICS_TYPE, Page, Pages

_TENANTS_LABELS = frozenset({"namespace", "resource"})


class StatusPages:
    """The pages. `missing` returns what stands between pods and their tokens, `warnings` what else is amiss."""

    def __init__(
        self,
        registry: CollectorRegistry,
        is_intercepting: Callable[[], bool],
        missing: Callable[[], Sequence[str]],
        warnings: Callable[[], Sequence[str]],
        *,
        details_for_all: bool,
    ) -> None:
        self._registry = registry
        self._is_intercepting = is_intercepting
        self._missing = missing
        self._warnings = warnings
        self.probes: Pages = {"/healthz": self._health, "/readyz": self._readiness}
        self.probes_of_strangers: Pages = {"/healthz": self._health, "/readyz": self._readiness_in_short}
        self.metrics: Pages = {"/metrics": lambda: self._metrics(frozenset())}
        self.metrics_of_strangers: Pages = {
            "/metrics": lambda: self._metrics(frozenset() if details_for_all else _TENANTS_LABELS)
        }

    def _health(self) -> Page:
        """Return upstream's page: always 200, the body says whether pods are intercepted."""
        return Page(200, b"Active" if self._is_intercepting() else b"Not Active")

    def _readiness(self) -> Page:
        missing = self._missing()
        if missing:
            return Page(503, "\n".join((*missing, "")).encode())
        return Page(200, "\n".join(("ok", *(f"warning: {warning}" for warning in self._warnings()), "")).encode())

    def _readiness_in_short(self) -> Page:
        if self._missing():
            return Page(503, b"not ready; ask from the node itself what is missing\n")
        return Page(200, b"ok\n")

    def _metrics(self, hidden: frozenset[str]) -> Page:
        return Page(200, render(self._registry, hidden), METRICS_TYPE)
