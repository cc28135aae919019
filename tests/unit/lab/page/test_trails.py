"""Trails of requests: which events belong together, and which do not."""

import dataclasses
import json
from collections.abc import Sequence

import pytest

from podidentity_lab.page import rendering
from podidentity_lab.page.events import BROKER, RESOURCES, TEXT_LIMIT, Event, of_audit_line, omitted_lines
from podidentity_lab.page.trails import KEYS_LIMIT, STEPS_LIMIT, TRAILS_LIMIT, Trail, Trails
from unit.lab.page.entries import CLIENT, OTHER_CLIENT, azure, nmi


def stations(events: Sequence[Event]) -> list[list[str]]:
    """Return the stations of each trail that these events form."""
    trails = Trails()
    for event in events:
        trails.add(event)
    return [[step.station for step in trail.steps] for trail in trails.last(TRAILS_LIMIT)]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 0, 1)])
def test_a_token_is_one_trail_in_whatever_order_the_logs_are_read(order: Sequence[int]) -> None:
    """Events of NMI, IMDS and Key Vault form one trail in any order: each log is read by itself."""
    events = (nmi(0.5, ms=100), azure(0.45, "imds", "node-1"), azure(0.6, "keyvault", "default/batch"))
    assert stations([events[index] for index in order]) == [["nmi", "imds", "keyvault"]]


@pytest.mark.parametrize(
    "event",
    [
        azure(0.45, "imds", "node-0"),
        azure(0.45, "imds", "node-1", OTHER_CLIENT),
        azure(0.45, "imds", "node-1", resource="https://management.azure.com/"),
        azure(9.0, "imds", "node-1"),
        azure(0.6, "keyvault", "default/other"),
        azure(0.6, "keyvault", "default/batch", OTHER_CLIENT),
        azure(30.0, "keyvault", "default/batch"),
    ],
    ids=["node", "identity", "resource", "time", "pod", "identity that uses it", "time of the use"],
)
def test_what_differs_in_one_thing_is_a_trail_of_its_own(event: Event) -> None:
    """An event that differs in node, identity, resource, pod or time forms another trail."""
    assert len(stations([nmi(0.5), event])) == 2


def test_a_token_of_the_cache_has_no_call_to_imds() -> None:
    """A call to IMDS at the same moment does not belong to a token from NMI's cache."""
    assert stations([nmi(0.5, cached="true"), azure(0.45, "imds", "node-1")]) == [["nmi"], ["imds"]]


def test_the_second_use_of_a_token_is_a_request_of_its_own() -> None:
    """Another use of a token is another trail: SDKs use a token for a day."""
    uses = [azure(moment, "keyvault", "default/batch") for moment in (0.6, 0.7)]
    assert stations([nmi(0.5), *uses]) == [["nmi", "keyvault"], ["keyvault"]]


def test_calls_of_two_requests_stay_apart() -> None:
    """A call to IMDS that began when a request was over is the next one's, however soon it came."""
    first = [azure(0.45, "imds", "node-1"), nmi(0.5, pod="one")]
    second = [azure(0.55, "imds", "node-1"), nmi(0.6, pod="two", ms=60.0)]
    assert stations([*first, *second]) == [["nmi", "imds"]] * 2


def test_what_nobody_waited_for_is_not_in_the_way() -> None:
    """However many tokens of the cache a node hands out meanwhile, the one that was fetched is found."""
    cached = [nmi(0.44 + 0.0001 * number, pod=f"pod-{number}", cached="true") for number in range(100)]
    assert [steps for steps in stations([azure(0.43, "imds", "node-1"), *cached, nmi(0.5)]) if len(steps) > 1] == [
        ["nmi", "imds"]
    ]


def test_steps_of_a_trail_are_bounded() -> None:
    """However often a daemon tries again, a trail has a bounded number of steps."""
    calls = [azure(0.45, "imds", "node-1", status=500) for _ in range(STEPS_LIMIT * 3)]
    assert max(map(len, stations([nmi(0.5), *calls]))) == STEPS_LIMIT


def test_a_refusal_of_the_last_station_is_the_trails() -> None:
    """A trail is refused when its last station refuses.

    A refusal by IMDS after which NMI got the token does not count.
    """
    trails = Trails()
    first = azure(0.42, "imds", "node-1", "", status=400, why="Identity not found")
    trail = trails.add(nmi(0.5))
    assert trails.add(dataclasses.replace(first, client_id="", identity="writer")) is trail
    assert trails.add(azure(0.45, "imds", "node-1")) is trail
    assert not _reason(trail)
    trails.add(azure(0.6, "keyvault", "default/batch", status=403, why="Forbidden: no"))
    assert _reason(trail) == "Forbidden: no"


def _reason(trail: Trail) -> str:
    return trail.refusal.reason if trail.refusal else ""


def test_nmis_refusal_is_the_trails() -> None:
    """A refusal by NMI is the trail's, with NMI's own sentence."""
    trail = Trails().add(nmi(0.5, status=404, why="no binding selects it"))
    assert _reason(trail) == "no binding selects it"


def test_through_the_broker() -> None:
    """A token of the broker is one trail: NMI, broker, Entra ID and the use."""
    fields = {
        "ts": "2026-11-29T01:09:46.480Z",
        "logger": "audit",
        "door": "token-file",
        "peer": "10.0.0.1",
        "status": 200,
        "namespace": "default",
        "pod": "batch",
        "client_id": CLIENT,
        "resource": "https://vault.azure.net",
        "cached": "false",
        "ms": 50.0,
    }
    broker = of_audit_line(json.dumps(fields), BROKER, "podidentity/broker-1")
    assert broker is not None
    entra = azure(0.47, "entra", "podidentity/broker-1")
    use = azure(0.6, "keyvault", "default/batch")
    for order in ((entra, broker, nmi(0.5), use), (nmi(0.5), broker, entra, use)):
        assert stations(order) == [["nmi", "broker", "entra", "keyvault"]]


def test_texts_of_others_are_bounded() -> None:
    """Whatever a pod writes into a request, an event has a bounded part of it."""
    text = "x" * 100_000
    event = azure(0.5, "imds", text, "", host=text, what=f"/a?client_id={text}", resource=text, why=text)
    assert max(len(str(value)) for value in event.as_json().values()) == TEXT_LIMIT
    assert len(azure(0.5, "imds", "n", "", identity="", what=f"/a?mi_res_id=/{text}").identity) == TEXT_LIMIT


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ('2026-11-29T01:09:45.508Z INFO audit: msg="lines left out" address=10.0.0.1 count=7 ms=0.0', 7),
        ('{"ts":"2026-11-29T01:09:45.508Z","logger":"audit","msg":"lines left out","count":7}', 7),
        ('2026-11-29T01:09:45.508Z INFO audit: msg=token resource="lines left out" count=7', 0),
        ('2026-11-29T01:09:45.508Z INFO audit: msg="lines left out" count=many', 0),
        ("lines left out", 0),
    ],
)
def test_lines_that_nmi_left_out(line: str, count: int) -> None:
    """A line that says how many were left out is read in both formats; one that only quotes the words is not."""
    assert omitted_lines(line) == count


@pytest.mark.parametrize("service", ["keyvault", "arm", "graph", "blob", "", "a-later-one"])
def test_every_service_can_be_the_last_station(service: str) -> None:
    """Each service of the lab's Azure has its place in a row; one that the page does not know yet has one too."""
    trails = Trails()
    trails.add(nmi(0.5))
    trail = trails.add(azure(0.6, service, "default/batch"))
    assert rendering.row(trail)
    assert len(trail.steps) == (2 if service in RESOURCES else 1)


def test_memory_is_bounded() -> None:
    """However many pods ask, a bounded number of trails is kept."""
    trails = Trails()
    for number in range(KEYS_LIMIT + 10):
        trails.add(nmi(0.5, pod=f"pod-{number}", node=f"node-{number}"))
    assert len(trails.last(KEYS_LIMIT)) == TRAILS_LIMIT


@pytest.mark.parametrize(
    "line",
    [
        "",
        "2026-11-29T01:09:45.508Z INFO nmi.duty: answering status=200",
        "2026-11-29T01:09:45.508Z INFO audit: msg=token pod=a",
        "yesterday INFO audit: status=200",
        '2026-11-29T01:09:45.508Z INFO audit: status="2\\x"',
        "{}",
        "{",
        '["audit"]',
    ],
)
def test_a_line_about_no_token_is_no_event(line: str) -> None:
    """Lines of any other form, such as those of later versions, are ignored."""
    assert of_audit_line(line, "nmi", "node-0") is None
