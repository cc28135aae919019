"""docs/reference/metrics.md: what the registries of the daemons hold."""

import importlib
import inspect
import re
from typing import Any, cast

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from podidentity.serving.metrics import make_registry, render
from references.source import PRODUCT, table

INTRODUCTION = """\
# Metrics

Written by tools/reference.py from the registries of the daemons. A daemon serves its metrics as `/metrics` on its port
`--prometheus-port`. Names are aad-pod-identity's where it has the metric. A histogram has the series `_bucket`, `_sum`
and `_count`; a counter is named exactly as here. NMI leaves the labels `namespace` and `resource` empty for
everybody but programs of its own node, unless `--metrics-details=all` is given.

The alerts on them: [runbooks](../runbooks/README.md).
"""


def page() -> str:
    """Return the whole page."""
    common = rows(make_registry())
    text = INTRODUCTION + f"\n## Every daemon\n\n{_table(common)}"
    for name in components():
        text += f"\n## `podidentity {name}`\n\n{_table(rows(registry(name)) - common)}"
    return text


def components() -> list[str]:
    """Return the packages that have metrics of their own: each has a module `metrics` with a class `Metrics`."""
    return sorted(path.parent.name for path in PRODUCT.glob("*/metrics.py") if "class Metrics" in path.read_text())


def registry(component: str) -> CollectorRegistry:
    """Return a registry with all metrics of a component: `Metrics`, and each collector that stands beside it."""
    module = importlib.import_module(f"podidentity.{component}.metrics")
    contents = make_registry()
    module.Metrics(contents)
    for _, member in inspect.getmembers(module, inspect.isclass):
        if member.__module__ == module.__name__ and hasattr(member, "collect"):
            contents.register(cast("Collector", member()))
    return contents


def rows(contents: CollectorRegistry) -> set[tuple[str, ...]]:
    """Return each metric of a registry: its name as it is served, type, labels, meaning."""
    names = re.findall(r"^# TYPE (\S+) ", render(contents).decode(), re.MULTILINE)
    collectors = list(contents._collector_to_names)  # noqa: SLF001  # the library has no other way to the labels
    metrics = [(collector, metric) for collector in collectors for metric in collector.collect()]
    return {
        (
            f"`{name}`",
            metric.type,
            ", ".join(f"`{label}`" for label in _labels(collector, metric)),
            metric.documentation,
        )
        for name, (collector, metric) in zip(names, metrics, strict=True)
    }


def _labels(collector: Collector, metric: Metric) -> tuple[str, ...]:
    names: Any = getattr(collector, "_labelnames", None) or getattr(metric, "_labelnames", ())
    return tuple(names) or tuple(dict.fromkeys(name for sample in metric.samples for name in sample.labels))


def _table(metrics: set[tuple[str, ...]]) -> str:
    return table(("metric", "type", "labels", "meaning"), sorted(metrics))
