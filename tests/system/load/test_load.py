"""NMI under load, through the real redirect: 250 pods, 20 identities, every answer read and compared."""

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from system.load.crowd import Crowd
from system.redirect.network import Network

PODS, IDENTITIES = 250, 20
SECONDS = 2
RSS_BUDGET_MIB = 52.0
GROWTH_MIB = 4.0  # an allocator's use varies by some MiB


def expected(pods: int) -> str:
    """Return what each pod's token says, in the load program's form."""
    return ",".join(f"token of identity-{number % IDENTITIES} for" for number in range(pods))


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """A node with 250 pods."""
    with Network("bridge") as network, Crowd(network, tmp_path_factory.mktemp("load")) as made:
        made.sources = made.fill(PODS, IDENTITIES)
        made.start("--anti-spoof=off")
        yield made


@pytest.mark.timeout(240)
def test_a_full_node_is_served_without_an_error_and_memory_stays(crowd: Crowd) -> None:
    """Each of 250 pods gets its own token every time, and memory stays within its budget.

    Requests have known and new heads and come on 32 and 512 connections.
    """
    resident = []
    for connections in (32, 512):
        for unique in ("false", "true"):
            flags = (f"-connections={connections}", f"-seconds={SECONDS}", f"-unique={unique}")
            told = crowd.load(crowd.sources, *flags, f"-expect={expected(PODS)}")
            assert (told["failures"], told["wrong"]) == ([], [])
            assert told["statuses"] == {"200": told["requests"]}
            assert told["requests"] > connections
        resident.append(crowd.resident_mib())
    told = crowd.load(crowd.sources, "-connections=512", f"-seconds={SECONDS}", f"-expect={expected(PODS)}")
    resident.append(crowd.resident_mib())
    assert max(resident) <= RSS_BUDGET_MIB, resident
    assert resident[-1] - resident[1] <= GROWTH_MIB, resident
    assert crowd.network.leaked() == 0
    # One call for each identity, and no more for a quarter of a million requests.
    assert len(crowd.imds.served.requests) == IDENTITIES


@pytest.mark.timeout(240)
def test_nmi_is_killed_at_random_moments_under_load(
    crowd: Crowd, request: pytest.FixtureRequest, record_property: Any
) -> None:
    """NMI is killed and started again several times: no pod gets a foreign token, and all are served again."""
    chance, told = random.Random(), dict[str, Any]()  # noqa: S311  # moments, not secrets
    flags = ("-connections=64", "-seconds=10", "-persist", f"-expect={expected(PODS)}")
    loading = threading.Thread(target=lambda: told.update(crowd.load(crowd.sources, *flags)))
    loading.start()
    pause = threading.Event()
    kills = 0
    while loading.is_alive() and kills < 3:
        pause.wait(chance.uniform(0.3, 1.5))
        crowd.kill()
        crowd.start("--anti-spoof=off")
        kills += 1
    loading.join(100)
    assert told["wrong"] == []
    assert set(told["statuses"]) <= {"200", "503"}, told
    assert told["broken"] > 0
    assert told["failures"] == []
    assert crowd.network.leaked() == 0
    assert crowd.load(crowd.sources, "-seconds=1", f"-expect={expected(PODS)}")["failures"] == []
    record_property("longest_gap_ms", told["longest_gap_ms"])
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        gap = told["longest_gap_ms"] / 1000
        reporter.write_line(f"killed {kills} times: longest time without an answer {gap:.2f} s")
