"""Requests against a real socket: pages, odd objects, refusals as typed errors, the server's pace, preconditions."""

import json
from typing import Any

import pytest

from clocks import JumpingClock
from daemons.kube.scripted import Reply, ScriptedServer, pod
from podidentity import errors
from podidentity.core.model.identities import ObjectKey
from podidentity.kube import api as api_module
from podidentity.kube.api import PAGE_SIZE, TRIES, Api, Pace, Selection, split_lines
from podidentity.kube.resources import (
    ASSIGNED_IDENTITIES,
    CONFIG_MAPS,
    IDENTITIES,
    LABEL_LIMIT,
    NAMESPACES,
    PODS,
    SECRETS,
    SELECTED_PODS,
)

POD = ObjectKey("team", "web")
PATH = "/api/v1/namespaces/team/pods/web"
CONFIG = ObjectKey("default", "c")


async def test_a_long_list_comes_in_pages(api: Api, server: ScriptedServer) -> None:
    """No answer holds more than a page, and none is lost between pages."""
    for number in range(PAGE_SIZE + 2):
        server.put(f"/api/v1/namespaces/team/pods/p{number}", pod(f"p{number}"))
    response = await api.list(PODS, Selection(labels="aadpodidbinding", fields="spec.nodeName=n1"))
    assert len(response.items) == PAGE_SIZE + 2
    assert response.version == str(server.version)
    assert [request.query["limit"] for request in server.requests] == [str(PAGE_SIZE)] * 2
    assert server.requests[1].query["labelSelector"] == "aadpodidbinding"
    assert server.requests[1].query["fieldSelector"] == "spec.nodeName=n1"


@pytest.mark.parametrize("name", ["../../other/secrets/s", "..", ".", "s?x=y", "s#x", "%2e%2e", "a\\b"])
@pytest.mark.parametrize("place", ["name", "namespace"])
async def test_a_name_leads_to_no_other_object(api: Api, server: ScriptedServer, name: str, place: str) -> None:
    """The client would resolve `..` before it sends: such a name is refused, and nothing is asked."""
    server.put("/api/v1/namespaces/other/secrets/s", {"metadata": {"namespace": "other", "name": "s"}})
    with pytest.raises(errors.InvalidError, match="is no name of an object"):
        await api.get(SECRETS, ObjectKey("team", "s")._replace(**{place: name}))
    assert server.requests == []


ODD: list[Any] = [
    b'{"metadata":{"namespace":"team","name":"odd","labels":5}}',
    b'{"metadata":{"namespace":"team","name":"odd"},"status":{"podIPs":"none"}}',
    b'{"metadata":{"namespace":"team","name":"odd","labels":{"a":null}}}',
    b'{"metadata":"gone"}',
    b'"just text"',
    b"null",
]


@pytest.mark.parametrize("odd", ODD)
async def test_one_odd_object_costs_nobody_else(odd: bytes, api: Api, server: ScriptedServer) -> None:
    """An object that cannot be read is left out and named; its neighbours on the page are there."""
    server.put(PATH, pod("web", "10.0.0.1"))
    server.put("/api/v1/namespaces/team/pods/odd", odd)
    server.put("/api/v1/namespaces/team/pods/api", pod("api", "10.0.0.2"))
    response = await api.list(PODS)
    assert {key.name for key in response.items} == {"web", "api"}
    assert len(response.odd) == 1


async def test_a_malformed_identity_is_named(api: Api, server: ScriptedServer) -> None:
    """What `core` finds wrong in a custom resource reaches the reader with the object's name and field."""
    server.put(
        "/apis/aadpodidentity.k8s.io/v1/namespaces/team/azureidentities/bad",
        {"metadata": {"namespace": "team", "name": "bad"}, "spec": {"clientID": 7}},
    )
    response = await api.list(IDENTITIES)
    assert "clientID" in response.odd[ObjectKey("team", "bad")]


async def test_a_pod_may_lack_everything(api: Api, server: ScriptedServer) -> None:
    """Absent and null fields mean the same, and neither is odd."""
    server.put(PATH, {"metadata": {"namespace": "team", "name": "web", "labels": None}, "spec": None})
    item = await api.get(PODS, POD)
    assert (item.phase, item.ips, dict(item.labels)) == ("Pending", (), {})


async def test_both_addresses_of_a_dual_stack_pod(api: Api, server: ScriptedServer) -> None:
    """Any of its addresses finds the pod; old kubelets write only `podIP`."""
    both = pod("web", "10.0.0.1")
    both["status"]["podIPs"].append({"ip": "fd00::1"})
    server.put(PATH, both)
    assert (await api.get(PODS, POD)).ips == ("10.0.0.1", "fd00::1")
    both["status"]["podIPs"] = []
    server.put(PATH, both)
    assert (await api.get(PODS, POD)).ips == ("10.0.0.1",)


async def test_a_secret_is_bytes_and_never_shows(api: Api, server: ScriptedServer) -> None:
    """Values are decoded from base64 and stay out of reprs, and so out of logs."""
    path = "/api/v1/namespaces/team/secrets/s"
    server.put(path, {"metadata": {"namespace": "team", "name": "s"}, "data": {"k": "aHVudGVyMg=="}})
    item = await api.get(SECRETS, ObjectKey("team", "s"))
    assert item.values == {"k": b"hunter2"}
    assert "hunter2" not in repr(item)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidError),
        (401, errors.ForbiddenError),
        (403, errors.ForbiddenError),
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (410, errors.GoneError),
        (422, errors.InvalidError),
        (429, errors.ThrottledError),
        (500, errors.UnreachableError),
        (503, errors.UnreachableError),
    ],
)
async def test_each_refusal_is_an_error_of_its_own(
    status: int, kind: type[errors.KubernetesError], api: Api, server: ScriptedServer
) -> None:
    """Callers tell refusals apart by class, and the server's words and the request are in the message."""
    server.answer_next(Reply.refusal(status, "the server's words"))
    with pytest.raises(kind) as caught:
        await api.get(PODS, POD)
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert "get pods team/web: the server's words; " in str(caught.value)


async def test_a_kind_that_is_not_served_says_to_install_it(api: Api, server: ScriptedServer) -> None:
    """Without our CRDs the API server answers 404 with plain text: the user must read about CRDs."""
    server.answer_next(Reply(404, b"404 page not found\n"))
    with pytest.raises(errors.NotFoundError, match=r"azureassignedidentities.*CustomResourceDefinition"):
        await api.list(ASSIGNED_IDENTITIES)


async def test_garbage_in_place_of_a_list_is_an_error(api: Api, server: ScriptedServer) -> None:
    """A proxy's login page is not an empty cluster."""
    server.answer_next(Reply(200, b"<html>log in</html>"))
    with pytest.raises(errors.InvalidError, match="check that the address is that of an API server"):
        await api.list(PODS)


async def test_nobody_listens(clock: JumpingClock, tmp_path: Any) -> None:
    """When nobody listens, the error is one sentence that names the request and the server."""
    from podidentity.kube.connection import find_cluster, open_client  # noqa: PLC0415 - only this test needs its own

    async with ScriptedServer.listening() as closed:
        path = closed.write_kubeconfig(tmp_path)
    async with open_client(find_cluster(str(path))) as http:
        with pytest.raises(errors.UnreachableError, match=rf"list pods: .*127\.0\.0\.1:{closed.port}") as caught:
            await Api(http, clock).list(PODS)
    assert caught.value.status == 0


async def test_the_server_sets_the_pace(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """An answer 429 is asked again exactly when the server says, so throttling is never the caller's problem."""
    server.put(PATH, pod("web"))
    server.answer_next(Reply.refusal(429, Retry_After="3"))
    server.answer_next(Reply.refusal(503, Retry_After="7"))
    assert (await api.get(PODS, POD)).key == POD
    assert clock.slept == [3, 7]


async def test_throttling_without_end_is_an_error(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """A server that throttles for ever does not hold a caller for ever, and cannot ask for a wait of hours."""
    for _ in range(TRIES):
        server.answer_next(Reply.refusal(429, Retry_After="86400"))
    with pytest.raises(errors.ThrottledError) as caught:
        await api.get(PODS, POD)
    assert len(server.requests) == TRIES
    assert len(clock.slept) == TRIES - 1
    assert max(clock.slept) == caught.value.retry_after_seconds == 30


async def test_a_client_limit_is_kept(server: ScriptedServer, api: Api, clock: JumpingClock) -> None:
    """--clientQps=5 means 5 a second after a burst of 5; without it nothing waits."""
    server.put(PATH, pod("web"))
    limited = Api(api._http, clock, Pace(5, clock))
    start = clock.steady()
    for _ in range(25):
        await limited.get(PODS, POD)
    assert clock.steady() - start == pytest.approx(4.0, abs=0.21)
    clock.slept.clear()
    for _ in range(25):
        await api.get(PODS, POD)
    assert clock.slept == []


async def test_write_read_write(api: Api, server: ScriptedServer) -> None:
    """Create, replace with the version that was read, patch both ways, delete."""
    config_map = await api.create(CONFIG_MAPS, {"metadata": {"namespace": "default", "name": "c"}, "data": {"a": "1"}})
    assert (config_map["apiVersion"], config_map["kind"]) == ("v1", "ConfigMap")
    stale = dict(config_map)
    await api.replace(CONFIG_MAPS, {**config_map, "data": {"a": "2"}})
    with pytest.raises(errors.ConflictError):
        await api.replace(CONFIG_MAPS, stale)
    with pytest.raises(errors.ConflictError):
        await api.create(CONFIG_MAPS, {"metadata": {"namespace": "default", "name": "c"}})
    assert (await api.patch(CONFIG_MAPS, CONFIG, {"data": {"a": "3"}}))["data"] == {"a": "3"}
    await api.delete(CONFIG_MAPS, CONFIG)
    with pytest.raises(errors.NotFoundError):
        await api.get(CONFIG_MAPS, CONFIG)
    assert server.objects == {}


async def test_the_form_of_a_patch_follows_from_its_value(api: Api, server: ScriptedServer) -> None:
    """A mapping goes out as a merge patch, a sequence as a JSON patch: the API server reads them by content type."""
    server.put("/api/v1/namespaces/default/configmaps/c", {"metadata": {"namespace": "default", "name": "c"}})
    await api.patch(CONFIG_MAPS, CONFIG, {"data": {}})
    server.answer_next(Reply(200, {"metadata": {"name": "c"}}))
    await api.patch(CONFIG_MAPS, CONFIG, [{"op": "replace", "path": "/status/status", "value": "Assigned"}])
    content_types = [request.headers["content-type"] for request in server.requests]
    assert content_types == ["application/merge-patch+json", "application/json-patch+json"]
    assert json.loads(server.requests[1].body)[0]["path"] == "/status/status"


async def test_only_the_object_that_was_meant_is_deleted(api: Api, server: ScriptedServer) -> None:
    """A deletion names the object's UID, so a re-created object of the same name survives it."""
    server.put(PATH, pod("web"))
    with pytest.raises(errors.ConflictError):
        await api.delete(PODS, POD, uid="uid-of-the-old-one")
    assert PATH in server.objects
    await api.delete(PODS, POD, uid="uid-web")
    assert PATH not in server.objects


async def test_lines_are_found_however_the_bytes_arrive() -> None:
    """Events are split by line ends alone, wherever the network cut them; none is held back, none grows for ever."""
    stream = b'{"a":1}\n\n{"b":2}\n{"c"'

    async def one_by_one() -> Any:
        for byte in stream:
            yield bytes([byte])

    assert [line async for line in split_lines(one_by_one())] == [b'{"a":1}', b'{"b":2}']

    async def endless() -> Any:
        while True:
            yield b"x" * 1000

    with pytest.raises(errors.InvalidError, match="longer than 5000 bytes"):
        _ = [line async for line in split_lines(endless(), 5000)]


async def test_of_a_pods_labels_a_bounded_number_is_kept(api: Api, server: ScriptedServer) -> None:
    """A pod may have thousands; NMI keeps what exceptions may name up to a bound, MIC what bindings select by alone."""
    own_labels = {"aadpodidbinding": "reader", "pod-template-hash": "abc"}
    server.put(PATH, pod("web", labels={f"a{number:04}": "x" for number in range(9000)} | own_labels))
    server.put("/api/v1/namespaces/team/pods/api", pod("api", labels=own_labels | {"app": "api"}))
    labels_by_name = {item.key.name: item.labels for item in (await api.list(PODS)).values}
    assert len(labels_by_name["web"]) == LABEL_LIMIT + 2
    assert labels_by_name["web"].items() >= own_labels.items()
    assert labels_by_name["api"] == own_labels | {"app": "api"}
    assert [item.labels for item in (await api.list(SELECTED_PODS)).values] == [own_labels, own_labels]


async def test_of_a_namespaces_annotations_ours_is_kept(api: Api, server: ScriptedServer) -> None:
    """All others, which may have 256 KiB together, are dropped from memory."""
    annotations = {"podidentity.io/allowed-identities": "*", "other": "x" * 1000}
    server.put("/api/v1/namespaces/team", {"metadata": {"name": "team", "annotations": annotations}})
    server.put("/api/v1/namespaces/bare", {"metadata": {"name": "bare"}})
    response = {item.name: item.annotations for item in (await api.list(NAMESPACES)).values}
    assert response == {"team": {"podidentity.io/allowed-identities": "*"}, "bare": {}}


async def test_pages_of_large_objects_are_short(api: Api, server: ScriptedServer) -> None:
    """A page that is too long is given up and asked for in parts; the next list of that kind begins with short ones."""
    size = api_module.ANSWER_LIMIT_BYTES // 20
    for number in range(50):
        server.put(f"/api/v1/namespaces/team/pods/p{number}", pod(f"p{number}", annotations={"x": "x" * size}))
    for _ in range(2):
        assert len((await api.list(PODS)).items) == 50
    limits = [int(request.query["limit"]) for request in server.requests]
    assert limits[:3] == [500, 62, 7]
    assert max(limits[3:]) <= api_module.PAGE_BYTES // size + 1
    for number in range(50):
        server.put(f"/api/v1/namespaces/team/pods/p{number}", pod(f"p{number}"))
    for _ in range(5):
        await api.list(PODS)
    assert server.requests[-1].query["limit"] == "500"


async def test_an_object_that_is_longer_than_any_is_an_error(
    api: Api, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that stays too long even for a single object is an error, and is not asked for again and again."""
    monkeypatch.setattr(api_module, "ANSWER_LIMIT_BYTES", 1000)
    server.put(PATH, pod("web", annotations={"x": "x" * 1000}))
    with pytest.raises(errors.InvalidError, match="an object is longer than 1000 bytes"):
        await api.list(PODS)
    assert [request.query["limit"] for request in server.requests] == ["500", "62", "7", "1"]
