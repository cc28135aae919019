"""Metrics under upstream's exact names, as Prometheus' text format.

Metrics are ordinary objects of prometheus-client, in a registry of the daemon's own. Only the writing differs: that
library puts `_total` behind every counter's name and a `_created` sample beside it, and dashboards made for
aad-pod-identity know neither. Each daemon defines its metrics; `probes` serves the page.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from podidentity.serving.sink import standard_error

PREFIX = "aadpodidentity_"

CYCLE_BUCKETS_SECONDS = (0.5, 1, 5, 10, 30, 60, 120, 300, 600, 900, 1200)
"""Upstream's buckets of what takes MIC and the cloud provider long (`pkg/metrics`)."""
SHORT_BUCKETS_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 2, 3, 4, 5, 10)
"""Upstream's, for additions, deletions, updates and IMDS: rules that name one of them go on working."""
REQUEST_BUCKETS_SECONDS = (0.0005, 0.005, 0.05, 0.5, 1, 2, 3, 4, 5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)
"""For NMI's operations: upstream's from 0.5 on, and finer steps below, where cached answers are."""


class Cell:
    """The durations that were counted under one set of labels, in seconds."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.total += seconds


class Durations(Collector):
    """A histogram for what is counted with every request, by the event loop's thread alone: it takes no locks.

    Prometheus-client's own costs a quarter of what the rest of a token's record does.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._family = name, documentation, labels
        self._buckets = tuple(map(float, buckets))  # comparing floats with integers takes longer
        self._cells: dict[tuple[str, ...], Cell] = {}
        registry.register(self)

    def labels(self, *values: str) -> Cell:
        """Return where durations with these labels are counted."""
        cell = self._cells.get(values)
        if cell is None:
            cell = self._cells[values] = Cell(self._buckets)
        return cell

    def collect(self) -> Iterable[Metric]:
        """Yield all durations counted so far."""
        name, documentation, labels = self._family
        family = HistogramMetricFamily(name, documentation, labels=labels)
        bounds = [*(floatToGoString(bound) for bound in self._buckets), "+Inf"]  # type: ignore[no-untyped-call]
        for values, cell in self._cells.items():
            buckets = list(zip(bounds, accumulate(cell.counts), strict=True))
            family.add_metric(values, buckets, cell.total)
        yield family


class Tally(Collector):
    """A counter that somebody else keeps; `read` returns it."""

    def __init__(self, name: str, documentation: str, read: Callable[[], int], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._read = read
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Yield the count as it is now."""
        yield CounterMetricFamily(self._name, self._documentation, value=self._read())


def make_registry() -> CollectorRegistry:
    """Return a registry with the metrics that every process has of itself."""
    registry = CollectorRegistry()
    documentation = "Log lines that were dropped because nobody read them in time."
    Tally(f"{PREFIX}dropped_log_lines_count", documentation, lambda: standard_error().dropped_count, registry)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry, hidden: Collection[str] = ()) -> bytes:
    """Write every metric of `registry` in the text format, version 0.0.4, under exactly the names it was given.

    What differs in `hidden` labels alone is added up; the labels stay, and are empty.
    """
    return "".join(line for metric in registry.collect() for line in _lines(_without(metric, hidden))).encode()


def _without(metric: Metric, hidden: Collection[str]) -> Metric:
    if not any(label in hidden for sample in metric.samples for label in sample.labels):
        return metric
    totals: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for sample in metric.samples:
        labels = frozenset((name, "" if name in hidden else value) for name, value in sample.labels.items())
        totals[sample.name, labels] = totals.get((sample.name, labels), 0.0) + sample.value
    summed = Metric(metric.name, metric.documentation, metric.type)
    summed.samples = [Sample(name, dict(labels), value, None, None) for (name, labels), value in totals.items()]
    return summed


def _lines(metric: Metric) -> Iterator[str]:
    kind = {"unknown": "untyped"}.get(metric.type, metric.type)
    text = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
    counter = metric.type == "counter"
    name = metric.name if metric.name.startswith(PREFIX) or not counter else f"{metric.name}_total"
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for sample in metric.samples:
        if not sample.name.endswith("_created"):
            value = floatToGoString(sample.value)  # type: ignore[no-untyped-call]
            yield f"{name if counter else sample.name}{_labels(sample)} {value}\n"


def _labels(sample: Sample) -> str:
    if not sample.labels:
        return ""
    pairs = ",".join(f'{name}="{_escape(value)}"' for name, value in sorted(sample.labels.items()))
    return "{" + pairs + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
