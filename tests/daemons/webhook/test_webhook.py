"""The webhook on a real TLS socket: admission reviews are sent, and patches come back."""

import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
import trustme

from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop
from podidentity.core.injection.rules import Rules, TokenFileDoor
from podidentity.errors import KubernetesError, UnreachableError
from podidentity.https.places import Places
from podidentity.https.server import Server
from podidentity.serving.metrics import make_registry, render
from podidentity.webhook.app import BODY_LIMIT_BYTES, MUTATE_PATH, WARN_PATH, App
from podidentity.webhook.metrics import Metrics

RULES = Rules("tenant", token_file=TokenFileDoor(2580))
LABELS = {"azure.workload.identity/use": "true"}


@dataclass
class Accounts:
    """Service accounts whose annotations a test sets."""

    annotations: dict[str, dict[str, str]] = field(default_factory=dict)
    failure: KubernetesError | None = None

    async def annotations_of(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """Return an account's annotations."""
        if self.failure is not None:
            raise self.failure
        return self.annotations.get(f"{namespace}/{name}")


@dataclass
class Webhook:
    """A webhook at work."""

    client: httpx2.AsyncClient
    accounts: Accounts
    metrics: Metrics

    async def review(self, content: Mapping[str, Any], kind: str = "Pod", path: str = MUTATE_PATH) -> dict[str, Any]:
        """Send a review of an object in namespace shop; return the response."""
        request = {"uid": "u", "kind": {"kind": kind}, "namespace": "shop", "object": content}
        document = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
        answer = await self.client.post(path, params={"timeout": "10s"}, json=document)
        assert answer.status_code == 200, answer.text
        response: dict[str, Any] = answer.json()["response"]
        return response


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Webhook]:
    """Serve a webhook."""
    accounts, metrics, authority = Accounts(), Metrics(make_registry()), trustme.CA()
    app = App(RULES, accounts, metrics)
    server = Server(app.answer, Places(), lambda: None, body_limit_bytes=BODY_LIMIT_BYTES)
    tls, trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(tls)
    authority.configure_trust(trusted)
    async with (
        server.listen("127.0.0.1", 0, tls) as port,
        httpx2.AsyncClient(verify=trusted, base_url=f"https://localhost:{port}") as client,
    ):
        yield Webhook(client, accounts, metrics)


def pod(**annotations: str) -> dict[str, Any]:
    """Return a labelled pod."""
    metadata = {"generateName": "cart-", "labels": LABELS, "annotations": annotations}
    return {"metadata": metadata, "spec": {"serviceAccountName": "cart", "containers": [{"name": "a"}]}}


async def test_a_labelled_pod_is_changed() -> None:
    """The response has a patch, and a warning about what is missing; the metrics count the review."""
    async with serving() as webhook:
        webhook.accounts.annotations["shop/cart"] = {}
        response = await webhook.review(pod())
        assert response["allowed"]
        assert [item["path"] for item in json.loads(base64.b64decode(response["patch"]))] == [
            "/spec/volumes",
            "/spec/containers",
        ]
        assert "client-id" in response["warnings"][0]
        text = render(webhook.metrics.registry).decode()
        assert 'azwi_mutation_request_count{namespace="shop"} 1' in text
        assert 'aadpodidentity_webhook_reviews_count{door="direct",outcome="changed"} 1' in text


async def test_what_is_refused() -> None:
    """A pod without its service account, or with a bad annotation, is refused with a sentence and status 400."""
    async with serving() as webhook:
        response = await webhook.review(pod())
        assert not response["allowed"]
        assert "shop/cart does not exist" in response["status"]["message"]
        webhook.accounts.annotations["shop/cart"] = {}
        seconds = pod(**{"azure.workload.identity/service-account-token-expiration": "1h"})
        response = await webhook.review(seconds)
        assert (response["allowed"], response["status"]["code"]) == (False, 400)


async def test_other_kinds_pass() -> None:
    """Other kinds of objects are admitted unchanged; a misplaced label gets a warning at the second path."""
    async with serving() as webhook:
        assert await webhook.review({"metadata": {}}, "Service") == {"uid": "u", "allowed": True}
        response = await webhook.review({"metadata": {"labels": LABELS}}, "Job", WARN_PATH)
        assert response["allowed"]
        assert "pod template" in response["warnings"][0]
        assert "warnings" not in await webhook.review({"metadata": {}}, "Job", WARN_PATH)


async def test_an_api_server_that_fails() -> None:
    """While service accounts cannot be read there is no review but an error, so the failurePolicy decides."""
    async with serving() as webhook:
        webhook.accounts.failure = UnreachableError("no answer")
        with pytest.raises(AssertionError, match="cannot be read now"):
            await webhook.review(pod())


async def test_what_is_no_review() -> None:
    """What is no review gets 4xx; a review of 3 MB is read, and a body over the limit gets 413."""
    async with serving() as webhook:
        assert (await webhook.client.get(MUTATE_PATH)).status_code == 405
        assert (await webhook.client.post("/")).status_code == 404
        assert (await webhook.client.post(MUTATE_PATH, content=b"{}")).status_code == 400
        webhook.accounts.annotations["shop/cart"] = {}
        assert (await webhook.review(pod(note="x" * 3_000_000)))["allowed"]
        too_long = await webhook.client.post(MUTATE_PATH, content=b" " * (BODY_LIMIT_BYTES + 1))
        assert too_long.status_code == 413


async def test_attacks_are_refused_and_are_no_bugs(capfd: pytest.CaptureFixture[str]) -> None:
    """A pod with absurd annotations is refused with a short sentence; what no API server sends is 400."""
    prefix = "azure.workload.identity/"
    absurd = [
        {f"{prefix}service-account-token-expiration": "9" * 5000},
        {f"{prefix}proxy-sidecar-port": "9" * 5000, f"{prefix}inject-proxy-sidecar": ""},
        {"podidentity.io/door": "d" * 100_000},
    ]
    async with serving() as webhook:
        webhook.accounts.annotations["shop/cart"] = {}
        for annotations in absurd:
            response = await webhook.review(pod(**annotations))
            assert (response["allowed"], response["status"]["code"]) == (False, 400)
            assert len(response["status"]["message"]) < 300
        request = {"uid": "u", "kind": {"kind": "Pod"}, "namespace": "shop", "object": {"spec": {"containers": [1]}}}
        document = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
        assert (await webhook.client.post(MUTATE_PATH, json=document)).status_code == 400
    assert "Traceback" not in capfd.readouterr().err


async def test_what_works_against_the_door_is_a_warning() -> None:
    """Whoever creates the pod sees what in it leads its programs elsewhere."""
    async with serving() as webhook:
        webhook.accounts.annotations["shop/cart"] = {"azure.workload.identity/client-id": "reader"}
        content = pod(**{"podidentity.io/door": "token-file"})
        content["spec"]["containers"][0]["env"] = [{"name": "AZURE_CLIENT_ID", "value": "x"}]
        response = await webhook.review(content)
        assert response["allowed"]
        first, second = response["warnings"]
        assert '"reader" is no client ID' in first
        assert "container a has AZURE_CLIENT_ID set" in second
