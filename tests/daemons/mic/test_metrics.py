"""MIC's metrics about its cycles and its writes, under upstream's names."""

import pytest

import make
from podidentity.core.model.identities import AzureAssignedIdentity
from podidentity.errors import ConflictError, FencedError, KubernetesError, UnreachableError
from podidentity.mic.metrics import CountedObjects, Metrics
from podidentity.serving import metrics

NAMES = {
    "assigned_identity_addition_duration_seconds": "histogram",
    "assigned_identity_addition_count": "counter",
    "assigned_identity_deletion_duration_seconds": "histogram",
    "assigned_identity_deletion_count": "counter",
    "assigned_identity_update_duration_seconds": "histogram",
    "assigned_identity_update_count": "counter",
    "mic_cycle_duration_seconds": "histogram",
    "mic_cycle_count": "counter",
    "mic_new_leader_election_count": "counter",
    "kubernetes_api_operations_errors_count": "counter",
}


class Objects:
    """Writes that go through, or fail with one error."""

    def __init__(self, error: KubernetesError | None = None) -> None:
        self._error = error

    async def create(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Succeed, or raise the error."""
        del assigned_identity
        if self._error:
            raise self._error

    replace = mark = delete = create


async def page_after_writes(error: KubernetesError | None = None) -> str:
    """Return the page after one write of each sort."""
    registry = metrics.make_registry()
    mic_metrics = Metrics(registry)
    objects = CountedObjects(Objects(error), mic_metrics)

    with mic_metrics.cycle():
        for write_object in (objects.create, objects.replace, objects.mark, objects.delete):
            try:
                await write_object(make.assigned())
            except KubernetesError:
                continue
    mic_metrics.elections.inc()
    return metrics.render(registry).decode()


async def test_names_and_kinds_are_upstreams() -> None:
    """The names are upstream's exactly, without `_total`, because dashboards use them."""
    page = await page_after_writes()
    assert [name for name, kind in NAMES.items() if f"# TYPE aadpodidentity_{name} {kind}\n" not in page] == []


async def test_buckets_contain_upstreams() -> None:
    """The buckets contain upstream's: 0.01 to 10 for writes, 0.5 to 1200 for cycles."""
    page = await page_after_writes()
    for name, bound in (("addition", "0.01"), ("deletion", "10.0")):
        assert f'aadpodidentity_assigned_identity_{name}_duration_seconds_bucket{{le="{bound}"}}' in page
    for bound in ("0.5", "1200.0"):
        assert f'aadpodidentity_mic_cycle_duration_seconds_bucket{{le="{bound}"}}' in page


async def test_each_write_is_counted_as_what_it_is() -> None:
    """Each write counts once as its sort; as in upstream, a new state is no update."""
    page = await page_after_writes()
    for name in ("assigned_identity_addition", "assigned_identity_deletion", "assigned_identity_update", "mic_cycle"):
        assert f"aadpodidentity_{name}_count 1.0" in page
    assert "aadpodidentity_mic_new_leader_election_count 1.0" in page


@pytest.mark.parametrize(
    ("error", "count"), [(UnreachableError("500"), "1.0"), (ConflictError("409"), "0.0"), (FencedError("-"), "0.0")]
)
async def test_failures_are_counted_by_operation(error: KubernetesError, count: str) -> None:
    """Failures have upstream's labels; a conflict or a lost lead is no failure."""
    page = await page_after_writes(error)
    for operation in (
        "assigned_identity_addition",
        "assigned_identity_deletion",
        "assigned_identity_update",
        "update_azure_assigned_identity_status",
    ):
        row = f'aadpodidentity_kubernetes_api_operations_errors_count{{operation_type="{operation}"}} {count}'
        assert row in page
