"""An NMI that refuses to start has closed its node first: on a fresh one, whatever it refuses for."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from podidentity.nmi.adapters.redirect import Redirect
from system.redirect.acting import within
from system.redirect.network import IMDS, Network
from system.redirect.programs import programs, run_in
from system.redirect.traffic import Server, fetch


@pytest.fixture(scope="module")
def shared() -> Iterator[Network]:
    """A node with pods, and IMDS behind its uplink."""
    with Network("routed") as made:
        server = Server(made.azure, IMDS, 80, "imds")
        yield made
        server.close()


@pytest.fixture(
    params=["an unknown flag", "a bad value", "a bad address", "managed mode", "kubenet", "no nft", "no ip"]
)
def refusal(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], str, int]:
    """Arguments, a PATH, and the exit status with which NMI refuses them."""
    path, kubelet = os.environ["PATH"], tmp_path / "kubelet"
    kubelet.write_text("KUBELET_FLAGS=--network-plugin=kubenet")
    (tmp_path / "bin").mkdir()
    match request.param:
        case "an unknown flag":
            return ["--no-such-flag", "value"], path, 2
        case "a bad value":
            return ["--nmi-port=many"], path, 2
        case "a bad address":
            return ["--metadata-ip=metadata"], path, 2
        case "managed mode":
            return ["--operation-mode=managed"], path, 2
        case "kubenet":
            return [f"--kubelet-config={kubelet}"], path, 2
        case "no nft":
            return [], programs(tmp_path / "bin", "ip"), 3
        case _:
            return [], programs(tmp_path / "bin", "nft"), 3


def test_a_refusal_leaves_no_way_to_imds(network: Network, refusal: tuple[list[str], str, int]) -> None:
    """Guard or rules stand, both where both can; the pod that reached IMDS before does not any more."""
    arguments, path, status = refusal
    assert fetch(network.pods[0]) == "imds"
    network.leaked()
    assert run_in(network.node, path, *arguments)[0] == status
    assert fetch(network.pods[0]) != "imds"
    assert network.leaked() == 0
    assert fetch(network.node) == "imds"
    tables, rules = network.node.run("nft list tables"), network.node.run("ip rule")
    assert ("podidentity_guard" in tables, IMDS in rules) == (can(path, "nft"), can(path, "ip"))


def can(path: str, program: str) -> bool:
    """Whether a program is on this PATH."""
    return shutil.which(program, path=path) is not None


@pytest.mark.parametrize("flag", ["--help", "--version", "--uninstall", "--redirect=none"])
def test_what_starts_no_daemon_closes_nothing(network: Network, flag: str) -> None:
    """A flag that only prints, such as --help, changes nothing on the node, not even beside a wrong flag."""
    run_in(network.node, os.environ["PATH"], flag, "--no-such-flag")
    assert fetch(network.pods[0]) == "imds"


def test_the_guard_may_stay_after_an_uninstall(network: Network) -> None:
    """With --keep-guard only the redirect goes; without it, the output says what every pod may do now."""
    within(network.node, Redirect.put_up_guard)
    status, said = run_in(network.node, os.environ["PATH"], "--uninstall", "--keep-guard")
    assert (status, "the guard stays" in said) == (0, True)
    assert fetch(network.pods[0]) != "imds"
    status, said = run_in(network.node, os.environ["PATH"], "--uninstall")
    assert (status, "every identity that is still on this machine" in said) == (0, True)
    assert fetch(network.pods[0]) == "imds"
