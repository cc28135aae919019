"""Metrics have exactly the names that they were given."""

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from podidentity.nmi.metrics import Metrics
from podidentity.serving.metrics import Durations, make_registry, render


def test_counters_carry_no_suffix() -> None:
    """Names have no `_total` or `_created`, since dashboards made for aad-pod-identity do not know them."""
    registry = CollectorRegistry()
    counter = Counter("aadpodidentity_x_count", "Something.", ("operation_type",), registry=registry)
    counter.labels('a"b\\c\nd').inc()
    assert render(registry).decode().splitlines() == [
        "# HELP aadpodidentity_x_count Something.",
        "# TYPE aadpodidentity_x_count counter",
        'aadpodidentity_x_count{operation_type="a\\"b\\\\c\\nd"} 1.0',
    ]


def test_histograms_are_complete() -> None:
    """A histogram has buckets, sum and count, which Prometheus' own parser reads."""
    registry = CollectorRegistry()
    Histogram("aadpodidentity_y_seconds", "Time.", registry=registry, buckets=(0.5, 1)).observe(0.7)
    (family,) = text_string_to_metric_families(render(registry).decode())
    assert {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples} == {
        ("aadpodidentity_y_seconds_bucket", "0.5"): 0.0,
        ("aadpodidentity_y_seconds_bucket", "1.0"): 1.0,
        ("aadpodidentity_y_seconds_bucket", "+Inf"): 1.0,
        ("aadpodidentity_y_seconds_sum", None): 0.7,
        ("aadpodidentity_y_seconds_count", None): 1.0,
    }


def test_nmi_has_upstreams_names() -> None:
    """All metrics of aad-pod-identity's NMI exist by the same names, and so do those of the process."""
    registry = make_registry()
    Metrics(registry)
    text = render(registry).decode()
    for name in ("nmi_operations_duration_seconds", "imds_operations_errors_count", "imds_operations_duration_seconds"):
        assert f"# TYPE aadpodidentity_{name} " in text
    assert "# TYPE aadpodidentity_kubernetes_api_operations_errors_count counter" in text
    assert "\nprocess_cpu_seconds_total " in text


def test_durations_are_written_as_prometheus_own_histogram_is() -> None:
    """Our histogram, which takes no locks, is written like Prometheus' own, also for values on a bucket's edge."""
    written, name, buckets = [], "aadpodidentity_x_seconds", (0.5, 1.0)
    for ours in (True, False):
        registry = CollectorRegistry()
        counted: Durations | Histogram
        if ours:
            counted = Durations(name, "Time.", ("status",), buckets, registry)
        else:
            counted = Histogram(name, "Time.", ("status",), buckets=buckets, registry=registry)
        for seconds in (0.1, 0.5, 0.7, 1.0, 3.0):
            counted.labels("200").observe(seconds)
        counted.labels("404").observe(0.2)
        written.append(sorted(render(registry).decode().splitlines()))
    assert written[0] == written[1]
