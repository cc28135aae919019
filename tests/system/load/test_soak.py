"""Minutes of bad weather, short: bench/soak.py does the same for half an hour."""

from collections.abc import Iterator

import pytest

from system.load.soaking import Seen, Soak, Weather
from system.redirect.network import Network

WEATHER = Weather(seconds=180, per_second=150, pods=30, identities=45, pod_seconds=5, cut_seconds=1, token_seconds=60)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """What pods that come and go saw, with watches cut and 5 % of IMDS's answers errors."""
    with Network("bridge") as network, Soak(network, tmp_path_factory.mktemp("soak"), WEATHER) as soak:
        told = soak.live_through()
        assert network.leaked() == 0
        yield told


@pytest.mark.timeout(600)
def test_every_pod_gets_its_own_token_and_every_question_its_answer(seen: Seen) -> None:
    """No token is another's, none is missing, no connection breaks."""
    assert seen.wrong == []
    assert seen.lost == []
    assert seen.broken == 0
    assert seen.requests > WEATHER.pods


def test_the_weather_was_bad(seen: Seen) -> None:
    """The control: pods were replaced, watches were cut, IMDS failed."""
    assert seen.pods > WEATHER.pods
    assert seen.cuts > 0
    assert seen.imds_failures > 0


def test_files_do_not_stay_open(seen: Seen) -> None:
    """A descriptor for each pod that ever lived would show."""
    assert seen.daemons["nmi"].descriptors_growth() < WEATHER.pods
