"""What NMI reports of its work: the audit line, metrics with bounded labels, an Event for each pod's first token."""

import asyncio
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import make
from daemons.kube.scripted import Reply, ScriptedServer
from daemons.nmi.harness import ADDRESS, TARGET, Serving, pod, serving
from daemons.nmi.imds import Reply as ImdsReply
from podidentity.core.tokens.imds import TokenRequest
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.events import Recorder
from podidentity.nmi.adapters.events import record_first_token
from podidentity.nmi.answers import Answer
from podidentity.nmi.app import Pending
from podidentity.nmi.ports import Peer
from podidentity.nmi.settings import Settings
from podidentity.nmi.token import TokenFlow
from podidentity.serving.metrics import make_registry, render
from podidentity.serving.sink import Sink
from waiting import eventually

HOUR_SECONDS = 3600.0
CLIENT_ID = "f9fa6eeb-4fc7-4dea-841e-c8559a502d26"


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the log lines, decoded from JSON."""
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


async def test_each_answer_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """The audit line has pod, address, resource, identity, source, status and duration, and a shortened client ID."""
    async with serving(Settings("n1", log_format="json")) as nmi:
        nmi.cluster.add(pod(), make.identity(client_id=CLIENT_ID))
        for _ in range(2):
            await nmi.ask()
        await nmi.ask(TARGET.replace("https://vault.azure.net", "api://some-application"))
    first, second, third = lines(capfd)
    fields = {
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
    assert {name: first[name] for name in fields} == fields
    assert set(first) == {*fields, "ts", "ms", "cached"}
    assert (first["cached"], second["cached"]) == ("false", "true")
    assert first["ms"] > 0
    assert third["resource"] == "some-application"


async def test_the_line_names_the_identity_that_answered(capfd: pytest.CaptureFixture[str]) -> None:
    """Two AzureIdentities with one resource ID share their tokens, but each audit line names the right one."""
    async with serving(Settings("n1", log_format="json")) as nmi:
        nmi.cluster.add(web := pod(), make.identity("reader"))
        for _ in range(2):
            await nmi.ask()
        nmi.cluster.assigned_identities.clear()
        nmi.cluster.assign(web, make.identity("writer", resource_id=make.resource_id("reader")))
        await nmi.ask()
    assert [line["identity"] for line in lines(capfd)] == ["default/reader"] * 2 + ["default/writer"]


async def test_the_line_names_the_address_that_asked(capfd: pytest.CaptureFixture[str]) -> None:
    """A pod with two addresses gets the same answer at both; each audit line has the address that asked."""
    both = (ADDRESS, "127.0.0.2")

    async with serving(Settings("n1", log_format="json")) as nmi:
        nmi.cluster.add(replace(pod(), ips=both), make.identity())
        await nmi.ask()
        request, app = TokenRequest("https://vault.azure.net"), nmi.listener.app
        first, second = (app.answer(request, Peer(address)) for address in both)
        assert first is second
    assert [line["address"] for line in lines(capfd)] == [ADDRESS, *both]


async def test_a_log_that_nobody_reads_stops_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """While standard error is a full pipe pods are answered, log lines are dropped, and a metric counts them."""
    read, write = os.pipe()
    sink = Sink(write)
    monkeypatch.setattr("podidentity.serving.logs.standard_error", lambda: sink)
    monkeypatch.setattr("podidentity.serving.metrics.standard_error", lambda: sink)
    monkeypatch.setattr("podidentity.nmi.metrics.LINES_AT_ONCE", 100_000)

    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        client = await nmi.connect()
        while not sink.dropped_count:
            assert (await client.ask()).status == 200
        assert f"aadpodidentity_dropped_log_lines_count {sink.dropped_count}.0" in render(make_registry()).decode()
    for end in (read, write):
        os.close(end)


async def test_one_pods_lines_are_bounded(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """An address has a limited number of audit lines, a later line counts those left out, and others lose none."""
    monkeypatch.setattr("podidentity.nmi.metrics.LINES_AT_ONCE", 5)
    monkeypatch.setattr("podidentity.nmi.metrics.LINE_SECONDS", HOUR_SECONDS)

    async with serving(Settings("n1", log_format="json")) as nmi:
        nmi.cluster.add(replace(pod(), ips=(ADDRESS, "127.0.0.2")), make.identity())
        client, other = await nmi.connect(), await nmi.connect("127.0.0.2")
        for _ in range(20):
            await client.ask()
        await other.ask()
        assert "aadpodidentity_nmi_omitted_audit_lines_count 15.0" in render(nmi.registry).decode()
        monkeypatch.setattr("podidentity.nmi.metrics.now", lambda: time.perf_counter() + HOUR_SECONDS)
        await client.ask()
    entries = lines(capfd)
    assert [line["address"] for line in entries] == [ADDRESS] * 5 + ["127.0.0.2"] + [ADDRESS] * 2
    assert (entries[6]["msg"], entries[6]["count"]) == ("lines left out", 15)


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_refusal_says_why_and_no_token_ever_shows(log_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In both formats a refusal's line has the reason, no line has a token, and a hostile query stays on one line."""
    async with serving(Settings("n1", log_format=log_format)) as nmi:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.append(ImdsReply(400, b'{"error":"x","error_description":"no such identity"}'))
        assert (await nmi.ask()).status == 403
        odd = "a%22%3D%20b" + "c" * 500
        assert (await nmi.ask(TARGET.replace("https://vault.azure.net", odd))).token.startswith("token of reader")
    output = capfd.readouterr().err
    assert len(output.splitlines()) == 2
    assert "no such identity" in output
    assert "token of" not in output
    assert max(len(line) for line in output.splitlines()) < 700


async def test_labels_are_bounded() -> None:
    """Nine hundred resources and paths of a client's choice make fewer than 80 series, none with the client's text."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        client = await nmi.connect()
        for number in range(300):
            await client.ask(TARGET.replace("vault", f"vault{number}"))
            await client.ask(f"/metadata/nothing{number}")
            await client.ask(f"/metadata/identity/oauth2/token?resource=https://[{number}")
        families = text_string_to_metric_families(render(nmi.registry).decode())
        (operations,) = [
            family for family in families if family.name == "aadpodidentity_nmi_operations_duration_seconds"
        ]
        labels = [sample.labels for sample in operations.samples if sample.name.endswith("_count")]
        assert len(labels) < 80
        assert {entry["operation_type"] for entry in labels} == {"/metadata/identity/oauth2/token", "other"}
        assert {entry["namespace"] for entry in labels} == {"default", ""}
        assert "nothing" not in str(labels)


async def test_metrics_of_imds_carry_upstreams_names() -> None:
    """The metrics have the names, operation types and buckets that upstream's dashboards use."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.append(ImdsReply(400))
        assert (await nmi.ask()).status == 403
        nmi.clock.jump(4)
        assert (await nmi.ask()).status == 200
        text = render(nmi.registry).decode()
        kind = 'operation_type="adal_token_msi_userassignedid"'
        assert f"aadpodidentity_imds_operations_errors_count{{{kind}}} 1.0" in text
        assert f"aadpodidentity_imds_operations_duration_seconds_count{{{kind}}} 2.0" in text
        for bound in ("0.01", "0.2", "0.9", "4.0", "10.0"):
            assert f'aadpodidentity_imds_operations_duration_seconds_bucket{{le="{bound}",{kind}}}' in text
        for bound in ("0.5", "2.0", "15.0", "70.0", "100.0"):
            assert f'nmi_operations_duration_seconds_bucket{{le="{bound}",' in text


async def test_the_first_token_of_each_pod_is_told_once() -> None:
    """A pod's first token is reported once; refusals, later tokens and tokens of excepted pods are not."""
    async with serving() as nmi:
        nmi.imds.script.append(ImdsReply(403))
        nmi.cluster.add(web := pod(), make.identity())
        assert (await nmi.ask()).status == 403
        assert nmi.cluster.first_tokens == []
        nmi.clock.jump(4)
        for resource in ("a", "b"):
            assert (await nmi.ask(TARGET + resource)).status == 200
        assert [answer.pod.uid for answer in nmi.cluster.first_tokens] == ["uid-of-web"]
        nmi.cluster.remove(web)
        nmi.cluster.add(pod("web", uid="another"), make.identity())
        assert (await nmi.ask()).status == 200
        nmi.cluster.pods[:] = [replace(make.mic_pod(), ips=(ADDRESS,))]
        assert (await nmi.ask()).status == 200
        assert [answer.pod.uid for answer in nmi.cluster.first_tokens] == ["uid-of-web", "another"]


@pytest.mark.parametrize("may_write", [True, False])
async def test_the_event_stands_on_the_binding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, may_write: bool
) -> None:
    """`kubectl describe` finds the Event by the binding's UID; without the right to write it, one warning names it."""
    async with ScriptedServer.listening() as server:
        kubeconfig = server.write_kubeconfig(tmp_path)
        async with open_client(find_cluster(str(kubeconfig))) as http:
            if not may_write:
                for _ in range(3):
                    server.answer_next(Reply.refusal(403, "events is forbidden"), to=lambda r: r.method == "POST")
            recorder = Recorder(Api(http), "n1")
            writing = asyncio.create_task(recorder.run())
            binding = replace(make.binding(), uid="uid-of-binding")
            for name in ("one", "two"):
                answer = Answer(200, b"", "", make.pod(name), make.identity(), binding)
                record_first_token(recorder, answer)
            await eventually(lambda: server.count("POST") == (2 if may_write else 1), "written")
            await eventually(lambda: not recorder._queue, "all are written")
            writing.cancel()
            events = [entry for path, entry in server.objects.items() if "/events/" in path]
            assert len(events) == (2 if may_write else 0)
            if may_write:
                assert events[0]["involvedObject"]["uid"] == "uid-of-binding"
                assert events[0]["involvedObject"]["kind"] == "AzureIdentityBinding"
                assert events[0]["message"] == "pod default/one got its first token of AzureIdentity default/reader"
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (0 if may_write else 1)
    assert all("create events" in warning and "allow it in the role" in warning for warning in warnings)


async def test_ten_thousand_waiting_requests_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting requests are not looked at again when other pods change, and do not make other requests slower."""
    looks = 0
    step = TokenFlow.step

    def count_step(*arguments: Any, **keywords: Any) -> Any:
        nonlocal looks
        looks += 1
        return step(*arguments, **keywords)

    async def other_requests(nmi: Serving) -> float:
        """Change and serve other pods; return the CPU time that this process took for it."""
        client = await nmi.connect_as_node()
        start = time.process_time()
        for number in range(300):
            nmi.cluster.follower.pod_changed(make.pod(f"other-{number}").key)
            assert (await client.ask("/host/token")).status == 400
        return time.process_time() - start

    monkeypatch.setattr(TokenFlow, "step", count_step)
    async with serving() as nmi:
        nmi.cluster.add(web := pod())
        alone = await other_requests(nmi)
        request, app = TokenRequest("https://vault.azure.net"), nmi.listener.app
        pending = [app.answer(request, Peer(ADDRESS)) for _ in range(10_000)]
        waiting = [asyncio.create_task(app.wait(entry)) for entry in pending if isinstance(entry, Pending)]
        await asyncio.sleep(0)
        assert len(waiting) == 10_000
        assert looks == 20_000
        with_them = await other_requests(nmi)
        assert looks == 20_000
        assert with_them < 5 * alone + 0.5
        nmi.cluster.assign(web, make.identity())
        answers = await asyncio.gather(*waiting)
        assert {answer.status for answer in answers} == {200}
        assert looks <= 40_000
        assert len(nmi.imds.requests) == 1
