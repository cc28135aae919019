"""NMI asks in the name of its node's pods, and of nobody else's."""

import json
from typing import Any

import httpx2
import pytest

from daemons.broker.harness import READER, Broker, form, serving
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop
from podidentity.core.exchange.requests import NODE_PATH

NMI = "podidentity/nmi"


async def ask(broker: Broker, token: str, pod: str, uid: str = "", client_id: str = READER) -> httpx2.Response:
    """Ask for a pod's token with NMI's."""
    namespace, _, name = pod.partition("/")
    fields = {"pod_namespace": namespace, "pod_name": name, "pod_uid": uid or f"uid-of-{name}"}
    return await broker.client.post(NODE_PATH, data=form(token, client_id) | fields)


def with_nmi(**changes: Any) -> Any:
    """Serve a broker that knows NMI."""
    return serving(node_daemons=frozenset({NMI}), **changes)


async def test_nmi_gets_what_a_pod_of_its_node_may_have(capfd: pytest.CaptureFixture[str]) -> None:
    """The grant is that of the pod's own service account; the log has the pod, its node, the door, and no token."""
    async with with_nmi(log_format="json") as broker:
        broker.cluster.grant("shop/cart")
        broker.cluster.add_pod("shop/cart-0", "cart")
        broker.cluster.add_pod("shop/web-0", "web")
        token = broker.cluster.token(NMI, "nmi-1")
        assert (await ask(broker, token, "shop/cart-0")).status_code == 200
        refusal = await ask(broker, token, "shop/web-0")
        assert refusal.status_code == 403
        assert "shop/web" in refusal.json()["error_description"]
    output = capfd.readouterr().err
    assert token not in output
    token_line, refusal_line = audit_lines(output)
    assert (
        token_line.items()
        >= {
            "door": "node",
            "namespace": "shop",
            "service_account": "cart",
            "pod": "cart-0",
            "pod_uid": "uid-of-cart-0",
            "node": "node-1",
            "client_id": READER,
            "resource": "https://vault.azure.net",
            "trace_id": "trace-1",
            "status": 200,
        }.items()
    )
    assert (refusal_line["status"], refusal_line["service_account"]) == (403, "web")


def audit_lines(output: str) -> list[dict[str, Any]]:
    """Return the audit log's lines of a broker that writes JSON."""
    return [json.loads(line) for line in output.splitlines() if '"audit"' in line]


async def test_a_pod_of_another_node_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    """So is one that has ended, one that is not there, and a name with another pod's UID; the log has each refusal."""
    async with with_nmi(log_format="json") as broker:
        broker.cluster.grant("shop/cart")
        broker.cluster.add_pod("shop/cart-0", "cart", "node-2")
        broker.cluster.add_pod("shop/cart-1", "cart", phase="Succeeded")
        broker.cluster.add_pod("shop/cart-2", "cart")
        token = broker.cluster.token(NMI, "nmi-1")
        assert (await ask(broker, token, "shop/cart-0")).status_code == 403
        assert (await ask(broker, token, "shop/cart-1")).status_code == 403
        assert (await ask(broker, token, "shop/cart-2", "another")).status_code == 404
        assert (await ask(broker, token, "shop/cart-3")).status_code == 404
        assert broker.entra.forms == []
    lines = audit_lines(capfd.readouterr().err)
    assert [(line["door"], line["status"]) for line in lines] == [("node", status) for status in (403, 403, 404, 404)]
    assert "shop/cart-0" in lines[0]["why"]
    assert "node-1" in lines[0]["why"]


async def test_nobody_but_nmi_asks_in_a_pods_name() -> None:
    """Neither the pod's own account, nor another daemon, nor anybody where no NMI is configured."""
    async with with_nmi() as broker:
        broker.cluster.grant("shop/cart")
        broker.cluster.add_pod("shop/cart-0", "cart")
        for account in ("shop/cart", "kube-system/nmi", "podidentity/other"):
            assert (await ask(broker, broker.cluster.token(account), "shop/cart-0")).status_code == 403
    async with serving() as broker:
        assert (await ask(broker, broker.cluster.token(NMI), "shop/cart-0")).status_code == 403


async def test_a_token_that_names_no_node() -> None:
    """Where a token names no node, as before Kubernetes 1.32, the broker takes the node of NMI's own pod."""
    async with with_nmi() as broker:
        broker.cluster.grant("shop/cart")
        broker.cluster.add_pod("shop/cart-0", "cart")
        broker.cluster.add_pod("shop/cart-1", "cart", "node-2")
        token = broker.cluster.token(NMI, "nmi-1")
        del broker.cluster.tokens[token]["user"]["extra"]["authentication.kubernetes.io/node-name"]
        assert (await ask(broker, token, "shop/cart-0")).status_code == 401
        broker.clock.jump(5)
        broker.cluster.add_pod("podidentity/nmi-1", "nmi")
        assert (await ask(broker, token, "shop/cart-0")).status_code == 200
        assert (await ask(broker, token, "shop/cart-1")).status_code == 403
        assert broker.cluster.questions.count("pod") == 4


async def test_a_pod_that_is_replaced_on_another_node_is_noticed() -> None:
    """The broker refuses the former pod's node within seconds."""
    async with with_nmi() as broker:
        broker.cluster.grant("shop/cart")
        broker.cluster.add_pod("shop/cart-0", "cart")
        token = broker.cluster.token(NMI, "nmi-1")
        assert (await ask(broker, token, "shop/cart-0")).status_code == 200
        broker.cluster.add_pod("shop/cart-0", "cart", "node-2", uid="another")
        broker.clock.jump(11)
        assert (await ask(broker, token, "shop/cart-0")).status_code == 404
