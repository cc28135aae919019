"""The bundle in ConfigMaps and in a webhook's configuration, even if others write to these objects."""

import base64
import logging
from dataclasses import dataclass, field
from typing import Any

import pytest

from clocks import JumpingClock
from daemons.certificates.conftest import BUNDLE, NAMESPACE, OWN_NAMESPACE, Cluster, Make, pass_time
from podidentity.certificates.publications import BundleConfigMaps, BundleWebhook, Check, Outcomes
from podidentity.core.model.identities import ObjectKey
from podidentity.errors import ConflictError
from podidentity.kube.api import Api
from podidentity.kube.resources import CONFIG_MAPS
from waiting import eventually

WEBHOOK = "podidentity-webhook"
SECRET_RULES = (
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [BUNDLE], "verbs": ["get", "patch"]},
)
CONFIG_MAP_RULES = (
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [BUNDLE], "verbs": ["get", "patch"]},
)


def edit_config_map(cluster: Cluster, data: dict[str, str]) -> None:
    """Replace the data of the bundle's ConfigMap."""
    assert cluster.kubernetes.storage.change("configmaps", NAMESPACE, BUNDLE, lambda item: item.update(data=data))


async def test_what_others_write_is_put_right(cluster: Cluster, new_replica: Make, clock: JumpingClock) -> None:
    """A bundle that was changed, emptied or deleted with its ConfigMap is written again; other keys stay."""
    replica = await new_replica()
    async with replica.running():
        bundle = cluster.bundle()
        edit_config_map(cluster, {"ca.crt": "nonsense", "note": "mine"})
        await pass_time(clock, [replica], 60.0)
        assert cluster.kubernetes.storage.get("configmaps", NAMESPACE, BUNDLE)["data"] == {
            "ca.crt": bundle,
            "note": "mine",
        }
        edit_config_map(cluster, {})
        await pass_time(clock, [replica], 60.0)
        assert cluster.bundle() == bundle
        cluster.kubernetes.storage.delete("configmaps", NAMESPACE, BUNDLE)
        await pass_time(clock, [replica], 60.0)
        assert cluster.bundle() == bundle


async def test_what_is_right_is_not_written(cluster: Cluster, new_replica: Make, clock: JumpingClock) -> None:
    """Replicas that find everything right at ten looks write nothing to the cluster."""
    replicas = [await new_replica(), await new_replica()]
    async with replicas[0].running(), replicas[1].running():
        revision = cluster.kubernetes.storage.revision
        for _ in range(10):
            await pass_time(clock, replicas, 60.0)
        assert cluster.kubernetes.storage.revision == revision


async def test_a_new_namespace_gets_it_at_once(cluster: Cluster, new_replica: Make, clock: JumpingClock) -> None:
    """A namespace that is new in the list gets the bundle at the next look, which `wake` asks for."""
    namespaces = {NAMESPACE}
    replica = await new_replica(BundleConfigMaps(BUNDLE, lambda: namespaces))
    async with replica.running():
        await pass_time(clock, [replica], 60.0)
        cluster.add_namespace("team-a")
        namespaces.add("team-a")
        looks = len(clock.slept)
        replica.certificates.wake()
        await eventually(lambda: len(clock.slept) > looks, "the look is done")
        assert cluster.bundle("team-a") == cluster.bundle()


async def test_a_place_that_refuses_is_named_once_and_the_others_go_on(
    cluster: Cluster, new_replica: Make, clock: JumpingClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning for each place names the missing right or namespace; the other places get the bundle."""
    cluster.add_namespace("team-a")
    token = cluster.limited_token(*SECRET_RULES, *CONFIG_MAP_RULES)
    replica = await new_replica(BundleConfigMaps(BUNDLE, lambda: ("a-is-missing", "team-a", NAMESPACE)), token=token)
    async with replica.running():
        for _ in range(3):
            await pass_time(clock, [replica], 60.0)
        assert replica.certificates.is_ready
        await replica.ask(cluster.bundle())
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2
    assert warnings[1].startswith(f"ConfigMap team-a/{BUNDLE} has not got the trust bundle: get configmaps")
    assert 'cannot get resource "configmaps"' in warnings[1]
    assert warnings[1].endswith("allow it in the role")
    assert replica.certificates.refusals.keys() == {f"ConfigMap a-is-missing/{BUNDLE}", f"ConfigMap team-a/{BUNDLE}"}


async def test_a_missing_namespace_is_named(cluster: Cluster, new_replica: Make) -> None:
    """The message says to create the namespace; once it exists, its ConfigMap is written."""
    replica = await new_replica(BundleConfigMaps(BUNDLE, lambda: ("team-a", NAMESPACE)))
    async with replica.running():
        message = replica.certificates.refusals[f"ConfigMap team-a/{BUNDLE}"]
        assert message.endswith('namespaces "team-a" not found; create it')
        cluster.add_namespace("team-a")
        await replica.certificates.start()
        assert cluster.bundle("team-a") == cluster.bundle()
        assert not replica.certificates.refusals


async def test_a_ca_that_no_client_can_know_does_not_sign(
    cluster: Cluster, new_replica: Make, clock: JumpingClock
) -> None:
    """While every place refuses the bundle the CA is not replaced; once one takes it, it is."""
    replica = await new_replica(BundleConfigMaps(BUNDLE, lambda: ("team-a",)))
    async with replica.running():
        before = cluster.secret()["data"]["ca.crt"]
        cluster.change_secret(
            lambda secret: secret["metadata"].setdefault("annotations", {}).update({"podidentity.io/replace-ca": "now"})
        )
        for _ in range(30):
            await pass_time(clock, [replica], 60.0)
        assert cluster.secret()["data"]["ca.crt"] == before
        assert "team-a" in replica.certificates.problem
        cluster.add_namespace("team-a")
        for _ in range(30):
            await pass_time(clock, [replica], 60.0)
        assert cluster.secret()["data"]["ca.crt"] != before


def webhook_configuration(cluster: Cluster) -> dict[str, Any]:
    """Return the webhook's configuration."""
    stored: dict[str, Any] = cluster.kubernetes.storage.get(
        "mutatingwebhookconfigurations.admissionregistration.k8s.io", None, WEBHOOK
    )
    return stored


async def test_every_webhook_of_a_configuration_gets_it(
    cluster: Cluster, new_replica: Make, clock: JumpingClock
) -> None:
    """Each webhook gets the bundle, its other fields stay, and a bundle that was removed is written again."""
    clients: list[dict[str, Any]] = [{"url": "https://one"}, {"url": "https://two", "caBundle": "b2xk"}]
    configuration = {
        "metadata": {"name": WEBHOOK},
        "webhooks": [
            {"name": f"{number}.podidentity.io", "clientConfig": client} for number, client in enumerate(clients)
        ],
    }
    resource = "mutatingwebhookconfigurations.admissionregistration.k8s.io"
    cluster.kubernetes.storage.create(resource, configuration)
    replica = await new_replica(OWN_NAMESPACE, BundleWebhook(WEBHOOK))
    async with replica.running():
        text = base64.b64encode(cluster.bundle().encode()).decode()
        expected = [{"url": "https://one", "caBundle": text}, {"url": "https://two", "caBundle": text}]
        assert [webhook["clientConfig"] for webhook in webhook_configuration(cluster)["webhooks"]] == expected
        assert cluster.kubernetes.storage.change(
            resource, None, WEBHOOK, lambda item: item["webhooks"][1]["clientConfig"].pop("caBundle")
        )
        await pass_time(clock, [replica], 60.0)
        assert [webhook["clientConfig"] for webhook in webhook_configuration(cluster)["webhooks"]] == expected


async def test_a_webhook_that_is_not_installed_is_named(cluster: Cluster, new_replica: Make) -> None:
    """The message says to create the configuration, and the daemon serves nevertheless."""
    replica = await new_replica(OWN_NAMESPACE, BundleWebhook(WEBHOOK))
    async with replica.running():
        assert "create it" in replica.certificates.refusals[f"MutatingWebhookConfiguration {WEBHOOK}"]
        await replica.ask(cluster.bundle())


@dataclass
class _Interruption:
    """A check that lets somebody else write first, once."""

    api: Api
    publication: BundleConfigMaps
    bundle: str
    calls: list[str] = field(default_factory=list)

    async def check(self) -> None:
        """Write another bundle between the read and the write of whoever checks."""
        self.calls.append(self.bundle)
        if len(self.calls) == 1:
            await self.publication.publish(self.api, self.bundle, _nothing)
        else:
            raise ConflictError("it was changed meanwhile; read it again")


async def _nothing() -> None:
    """Raise nothing: the bundle is the newest."""


async def test_an_old_bundle_never_replaces_a_newer_one(cluster: Cluster) -> None:
    """If another replica publishes a newer bundle between our read and our write, our write is refused."""
    api, publication = await cluster.api(), BundleConfigMaps(BUNDLE, lambda: (NAMESPACE,))
    await publication.publish(api, "oldest", _nothing)
    interruption = _Interruption(api, publication, "newest")
    with pytest.raises(ConflictError):
        await publication.publish(api, "old", interruption.check)
    assert cluster.bundle() == "newest"


async def test_a_publication_names_each_place(cluster: Cluster) -> None:
    """The outcome has an entry for each place, and the ConfigMap has a label that says who manages it."""
    api = await cluster.api()
    check: Check = _nothing
    outcomes: Outcomes = await BundleConfigMaps(BUNDLE, lambda: (NAMESPACE,)).publish(api, "text", check)
    assert outcomes == {f"ConfigMap {NAMESPACE}/{BUNDLE}": None}
    stored = await api.get(CONFIG_MAPS, ObjectKey(NAMESPACE, BUNDLE))
    assert stored["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "podidentity"}
