"""A short soak: pods come and go while watches are cut and IMDS fails. bench/soak.py does the same for half an hour."""

from collections.abc import Iterator

import pytest

from system.load.soaking import Seen, Soak, Weather
from system.redirect.network import Network

WEATHER = Weather(seconds=180, per_second=150, pods=30, identities=45, pod_seconds=5, cut_seconds=1, token_seconds=60)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """What the pods of a soak saw while watches were cut and 5 % of IMDS's answers were errors."""
    with Network("bridge") as network, Soak(network, tmp_path_factory.mktemp("soak"), WEATHER) as soak:
        told = soak.live_through()
        assert network.leaked() == 0
        yield told


@pytest.mark.timeout(600)
def test_every_pod_gets_its_own_token_and_every_question_its_answer(seen: Seen) -> None:
    """No pod gets another's token, no request stays without a token, and no connection breaks."""
    assert seen.wrong == []
    assert seen.lost == []
    assert seen.broken == 0
    assert seen.requests > WEATHER.pods


def test_the_weather_was_bad(seen: Seen) -> None:
    """The control of the test above: pods were replaced, watches were cut, and IMDS failed."""
    assert seen.pods > WEATHER.pods
    assert seen.cuts > 0
    assert seen.imds_failures > 0


def test_files_do_not_stay_open(seen: Seen) -> None:
    """NMI's open files grow by less than one for each pod."""
    assert seen.daemons["nmi"].descriptors_growth() < WEATHER.pods
