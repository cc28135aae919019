"""What the webhook counts: upstream's histogram, and what became of the reviews."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from podidentity.serving.metrics import PREFIX, Durations

MUTATION_BUCKETS_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Everything the webhook counts, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.mutations = Durations(
            "azwi_mutation_request",
            "Time of an admission, in seconds.",
            ("namespace",),
            buckets=MUTATION_BUCKETS_SECONDS,
            registry=registry,
        )
        self.outcomes = Counter(
            f"{PREFIX}webhook_reviews_count",
            "Reviews by their outcome and the door that the pod got.",
            ("outcome", "door"),
            registry=registry,
        )
        self.certificate_expiry = Gauge(
            f"{PREFIX}webhook_certificate_expiry_seconds",
            "When the serving certificate expires, in seconds since 1970.",
            registry=registry,
        )
