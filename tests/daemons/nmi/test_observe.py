"""What NMI tells of its work: the audit line, metrics with bounded labels, an Event for each pod's first token."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import make
from daemons.kube.scripted import Reply, ScriptedServer, eventually
from daemons.nmi.harness import ADDRESS, TARGET, Serving, pod, serving
from daemons.nmi.imds import Reply as ImdsReply
from podidentity.core.imds import TokenRequest
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.events import Recorder
from podidentity.nmi.answers import Answer
from podidentity.nmi.app import Pending
from podidentity.nmi.events import tell_first_token
from podidentity.nmi.ports import Peer
from podidentity.nmi.settings import Settings
from podidentity.nmi.token import TokenFlow
from podidentity.serving.metrics import render

CLIENT_ID = "f9fa6eeb-4fc7-4dea-841e-c8559a502d26"


def run(test: Callable[[Serving], Awaitable[None]], settings: Settings | None = None) -> None:
    """Run one test against a fresh NMI."""

    async def act() -> None:
        async with serving(settings) as nmi:
            await test(nmi)

    asyncio.run(act())


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Read what was written as JSON."""
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def test_each_answer_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Who asked, what, which identity answered, from where, how it ended, how long it took; client IDs shortened."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity(client_id=CLIENT_ID))
        for _ in range(2):
            await nmi.ask()
        await nmi.ask(TARGET.replace("https://vault.azure.net", "api://some-application"))

    run(test, Settings("n1", log_format="json"))
    first, second, third = lines(capfd)
    told = {
        "level": "info",
        "logger": "audit",
        "msg": "token",
        "status": 200,
        "pod": "web",
        "namespace": "default",
        "uid": "uid-of-web",
        "address": ADDRESS,
        "resource": "vault.azure.net",
        "identity": "default/reader",
        "client_id": "f9fa##### REDACTED #####2d26",
        "source": "adal_token_msi_userassignedid",
    }
    assert {name: first[name] for name in told} == told
    assert set(first) == {*told, "ts", "ms", "cached"}
    assert (first["cached"], second["cached"]) == ("false", "true")
    assert first["ms"] > 0
    assert third["resource"] == "some-application"


def test_the_line_names_the_identity_that_answered(capfd: pytest.CaptureFixture[str]) -> None:
    """Two AzureIdentities with one resource ID share their tokens, but not what is written of them."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(web := pod(), make.identity("reader"))
        for _ in range(2):
            await nmi.ask()
        nmi.cluster.assigned.clear()
        nmi.cluster.assign(web, make.identity("writer", resource_id=make.resource_id("reader")))
        await nmi.ask()

    run(test, Settings("n1", log_format="json"))
    assert [line["identity"] for line in lines(capfd)] == ["default/reader"] * 2 + ["default/writer"]


def test_the_line_names_the_address_that_asked(capfd: pytest.CaptureFixture[str]) -> None:
    """A pod with two addresses is given the very same answer at both; each line has its own."""
    both = (ADDRESS, "127.0.0.2")

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(replace(pod(), ips=both), make.identity())
        await nmi.ask()
        asked, app = TokenRequest("https://vault.azure.net"), nmi.listener.app
        first, second = (app.answer(asked, Peer(address)) for address in both)
        assert first is second

    run(test, Settings("n1", log_format="json"))
    assert [line["address"] for line in lines(capfd)] == [ADDRESS, *both]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_refusal_says_why_and_no_token_ever_shows(log_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In both formats, whatever stands in a client's query stays on one line."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.append(ImdsReply(400, b'{"error":"x","error_description":"no such identity"}'))
        assert (await nmi.ask()).status == 403
        odd = "a%22%3D%20b" + "c" * 500
        assert (await nmi.ask(TARGET.replace("https://vault.azure.net", odd))).token.startswith("token of reader")

    run(test, Settings("n1", log_format=log_format))
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 2
    assert "no such identity" in said
    assert "token of" not in said
    assert max(len(line) for line in said.splitlines()) < 700


def test_labels_are_bounded() -> None:
    """A thousand resources and paths of a client's choice make a handful of series, none with what it wrote."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        client = await nmi.connect()
        for number in range(300):
            await client.ask(TARGET.replace("vault", f"vault{number}"))
            await client.ask(f"/metadata/nothing{number}")
            await client.ask(f"/metadata/identity/oauth2/token?resource=https://[{number}")
        found = text_string_to_metric_families(render(nmi.registry).decode())
        (operations,) = [family for family in found if family.name == "aadpodidentity_nmi_operations_duration_seconds"]
        labels = [sample.labels for sample in operations.samples if sample.name.endswith("_count")]
        assert len(labels) < 80
        assert {one["operation_type"] for one in labels} == {"/metadata/identity/oauth2/token", "other"}
        assert {one["namespace"] for one in labels} == {"default", ""}
        assert "nothing" not in str(labels)

    run(test)


def test_metrics_of_imds_carry_upstreams_names() -> None:
    """Operation types, and the very buckets that upstream's dashboards name."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.append(ImdsReply(400))
        assert (await nmi.ask()).status == 403
        nmi.clock.pass_time(4)
        assert (await nmi.ask()).status == 200
        text = render(nmi.registry).decode()
        kind = 'operation_type="adal_token_msi_userassignedid"'
        assert f"aadpodidentity_imds_operations_errors_count{{{kind}}} 1.0" in text
        assert f"aadpodidentity_imds_operations_duration_seconds_count{{{kind}}} 2.0" in text
        for bound in ("0.01", "0.2", "0.9", "4.0", "10.0"):
            assert f'aadpodidentity_imds_operations_duration_seconds_bucket{{le="{bound}",{kind}}}' in text
        for bound in ("0.5", "2.0", "15.0", "70.0", "100.0"):
            assert f'nmi_operations_duration_seconds_bucket{{le="{bound}",' in text

    run(test)


def test_the_first_token_of_each_pod_is_told_once() -> None:
    """Not the second, not a refusal, not an excepted pod's, which no binding gave."""

    async def test(nmi: Serving) -> None:
        nmi.imds.script.append(ImdsReply(403))
        nmi.cluster.add(web := pod(), make.identity())
        assert (await nmi.ask()).status == 403
        assert nmi.cluster.served == []
        nmi.clock.pass_time(4)
        for resource in ("a", "b"):
            assert (await nmi.ask(TARGET + resource)).status == 200
        assert [answer.pod.uid for answer in nmi.cluster.served] == ["uid-of-web"]
        nmi.cluster.remove(web)
        nmi.cluster.add(pod("web", uid="another"), make.identity())
        assert (await nmi.ask()).status == 200
        nmi.cluster.pods[:] = [replace(make.mic_pod(), ips=(ADDRESS,))]
        assert (await nmi.ask()).status == 200
        assert [answer.pod.uid for answer in nmi.cluster.served] == ["uid-of-web", "another"]

    run(test)


@pytest.mark.parametrize("allowed", [True, False])
def test_the_event_stands_on_the_binding(tmp_path: Path, caplog: pytest.LogCaptureFixture, *, allowed: bool) -> None:
    """`kubectl describe` finds it by the binding's UID; without the right there is one warning that names it."""

    async def act() -> None:
        async with ScriptedServer.listening() as server:
            kubeconfig = server.write_kubeconfig(tmp_path)
            async with open_client(find_cluster(str(kubeconfig))) as http:
                if not allowed:
                    for _ in range(3):
                        server.answer_next(Reply.refusal(403, "events is forbidden"), to=lambda r: r.method == "POST")
                recorder = Recorder(Api(http), "n1")
                writing = asyncio.create_task(recorder.run())
                binding = replace(make.binding(), uid="uid-of-binding")
                for name in ("one", "two"):
                    given = Answer(200, b"", "", make.pod(name), make.identity(), binding)
                    tell_first_token(recorder, given)
                await eventually(lambda: server.count("POST") == (2 if allowed else 1), "written")
                await eventually(lambda: not recorder._queue, "all are written")
                writing.cancel()
                events = [one for path, one in server.objects.items() if "/events/" in path]
                assert len(events) == (2 if allowed else 0)
                if allowed:
                    assert events[0]["involvedObject"]["uid"] == "uid-of-binding"
                    assert events[0]["involvedObject"]["kind"] == "AzureIdentityBinding"
                    assert events[0]["message"] == "pod default/one got its first token of AzureIdentity default/reader"

    asyncio.run(act())
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (0 if allowed else 1)
    assert all("create events" in warning and "allow it in the role" in warning for warning in warnings)


def test_ten_thousand_waiting_requests_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looks twice, however much happens to others meanwhile; serving others costs what it costs without them."""
    looks = 0
    step = TokenFlow.step

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal looks
        looks += 1
        return step(*arguments, **named)

    async def others(nmi: Serving) -> float:
        """Change and serve other pods, and say what CPU time that took this process."""
        client = await nmi.connect_as_node()
        began = time.process_time()
        for number in range(300):
            nmi.cluster.follower.pod_changed(make.pod(f"other-{number}").key)
            assert (await client.ask("/host/token")).status == 400
        return time.process_time() - began

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(web := pod())
        alone = await others(nmi)
        asked, app = TokenRequest("https://vault.azure.net"), nmi.listener.app
        pending = [app.answer(asked, Peer(ADDRESS)) for _ in range(10_000)]
        waiting = [asyncio.create_task(app.wait(one)) for one in pending if isinstance(one, Pending)]
        await asyncio.sleep(0)
        assert len(waiting) == 10_000
        assert looks == 20_000
        with_them = await others(nmi)
        assert looks == 20_000
        assert with_them < 5 * alone + 0.5
        nmi.cluster.assign(web, make.identity())
        answers = await asyncio.gather(*waiting)
        assert {answer.status for answer in answers} == {200}
        assert looks <= 40_000
        assert len(nmi.imds.asked) == 1

    monkeypatch.setattr(TokenFlow, "step", counted)
    run(test)
