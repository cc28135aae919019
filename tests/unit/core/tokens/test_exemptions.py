"""Which pods are excepted, which Secrets NMI may read, and how client IDs are shortened in logs."""

from dataclasses import replace

import pytest

import make
from podidentity.core.model import redact
from podidentity.core.model.identities import AzurePodIdentityException, ObjectKey, SecretReference
from podidentity.core.model.snapshot import Owner
from podidentity.core.tokens import exemptions


def test_any_one_label_of_an_exception_is_enough() -> None:
    """A pod is excepted by any one of the exception's labels; values compare without case, as in upstream."""
    pod = replace(make.pod(), labels={"app": "Mic", "x": "1"})
    exception = AzurePodIdentityException(ObjectKey("default", "e"), {"app": "mic", "other": "2"})
    assert exemptions.is_excepted(pod, [exception])
    assert not exemptions.is_excepted(replace(pod, labels={"x": "1"}), [exception])


def test_an_exception_holds_in_its_own_namespace_only() -> None:
    """An exception does not apply to pods of other namespaces, so that no tenant can exempt another's pods."""
    exception = AzurePodIdentityException(ObjectKey("team-b", "e"), {"app": "mic"})
    assert not exemptions.is_excepted(replace(make.pod(), labels={"app": "mic"}), [exception])


def test_mic_is_known_by_namespace_owner_and_service_account() -> None:
    """A pod is MIC by namespace, owner, service account and label.

    Upstream exempted every pod whose name began with `mic`, `microservice` among them.
    """
    mic = make.mic_pod()
    assert exemptions.is_mic(mic, "default")
    assert not exemptions.is_mic(mic, "kube-system")
    assert not exemptions.is_mic(replace(mic, owner=Owner("ReplicaSet", "microservice-abc")), "default")
    assert not exemptions.is_mic(replace(mic, owner=Owner("StatefulSet", "mic-abc")), "default")
    assert not exemptions.is_mic(replace(mic, owner=None), "default")
    assert not exemptions.is_mic(replace(mic, service_account="default"), "default")
    assert not exemptions.is_mic(replace(mic, labels={}), "default")


def test_a_secret_comes_only_from_the_identitys_namespace() -> None:
    """A Secret of another namespace is refused unless that is allowed.

    A tenant could otherwise have it sent to an adEndpoint of his own.
    """
    own_identity = make.identity(client_password=SecretReference("default", "s"))
    foreign = make.identity(client_password=SecretReference("kube-system", "s"))
    assert exemptions.secret_refusal(own_identity, ()) is None
    assert "another namespace" in (exemptions.secret_refusal(foreign, ()) or "")
    assert exemptions.secret_refusal(foreign, {"kube-system"}) is None
    assert "no clientPassword" in (exemptions.secret_refusal(make.identity(), ()) or "")


@pytest.mark.parametrize("name", ["../../kube-system/secrets/s", "..", ".", "", "s?x", "s#", "%2e%2e", "S", "a" * 254])
def test_a_secrets_name_leads_nowhere_else(name: str) -> None:
    """A malformed name of a Secret is refused.

    The name becomes part of a path: with dots and slashes it would lead to a Secret of another namespace.
    """
    walking = make.identity(client_password=SecretReference("default", name))
    assert "is no name of a Secret" in (exemptions.secret_refusal(walking, {"default"}) or "")


def test_a_client_id_is_shortened() -> None:
    """Logs show four characters at each end of a client ID, as in upstream."""
    assert redact.client_id("f9fa6eeb-4fc7-4dea-841e-c8559a502d26") == "f9fa##### REDACTED #####2d26"
    assert redact.client_id("short") == "short"
