"""What every daemon's command does the same: help, version, refusals, uninstallation, and the daemon itself."""

import asyncio
import logging
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from podidentity import __version__
from podidentity.cli.daemon import DaemonCommand, forces_namespaces, user_agent
from podidentity.cli.flags import COMMON, COMPATIBILITY, Flag, Flags, parse
from podidentity.errors import ConfigurationError, UsageError

TABLE = (
    Flag("port", "number", "80", "A port."),
    Flag("forceNamespaced", "switch", "false", "A switch."),
    Flag("uninstall", "switch", "false", "Leave."),
    *COMMON,
    *COMPATIBILITY,
)


@dataclass
class Trial:
    """A daemon that notes what is called, in order."""

    calls: list[str]

    def settings_of(self, flags: Flags, _environ: Mapping[str, str]) -> int:
        """Refuse what is no port."""
        return flags.port("port")

    def serve(self, _flags: Flags, settings: int) -> Coroutine[Any, Any, None]:
        """Return a daemon that ends at once."""

        async def daemon() -> None:
            self.calls.append(f"serve {settings} on {type(asyncio.get_running_loop()).__module__.partition('.')[0]}")

        return daemon()

    async def uninstall(self, _flags: Flags, settings: int) -> str:
        """Take nothing away."""
        self.calls.append(f"uninstall {settings}")
        return "It is gone."

    def prepare(self, flags: Flags) -> None:
        """Note that it came first."""
        self.calls.append(f"prepare {flags.number('port')}")

    def command(self) -> DaemonCommand[int]:
        """Return its command."""
        return DaemonCommand(
            "podidentity trial",
            "A trial.",
            "podidentity trial --port=1",
            TABLE,
            self.settings_of,
            self.serve,
            self.uninstall,
            self.prepare,
        )


@pytest.fixture
def trial() -> Iterator[Trial]:
    """A daemon that nothing has called yet. Logging, which commands change, is set back at the end."""
    root, ours = logging.getLogger(), logging.getLogger("podidentity")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield Trial([])
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_the_daemon_runs_with_its_settings_on_uvloop(trial: Trial) -> None:
    """A daemon's `prepare` is called with its settings, then `serve`, which runs on uvloop."""
    assert trial.command().run(["--port=7"]) == 0
    assert trial.calls == ["prepare 7", "serve 7 on uvloop"]


def test_a_preparation_may_say_what_serves(trial: Trial) -> None:
    """`prepare` may return what serves in place of the usual daemon."""
    other = Trial([])
    assert replace(trial.command(), prepare=lambda _: other.serve).run([]) == 0
    assert (trial.calls, other.calls) == ([], ["serve 80 on uvloop"])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--port=7", "--nope"], UsageError),
        (["--port=many"], UsageError),
        (["--port=0"], UsageError),
        (["--log-format=xml"], UsageError),
    ],
)
def test_what_refuses_to_start_was_prepared(words: list[str], error: type[Exception], trial: Trial) -> None:
    """`prepare` is called even when the flags are wrong.

    NMI closes its node off in it: a typing error must not leave the node open.
    """
    with pytest.raises(error):
        trial.command().run(words)
    assert [call.partition(" ")[0] for call in trial.calls] == ["prepare"]


@pytest.mark.parametrize(
    ("word", "line"),
    [("--help", "Usage: podidentity trial"), ("--version", f"podidentity trial, version {__version__}")],
)
def test_help_and_version_touch_nothing(word: str, line: str, trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    """Help and version are printed even with a wrong setting, and nothing is prepared or served."""
    assert trial.command().run([word, "--port=0"]) == 0
    assert capsys.readouterr().out.startswith(line)
    assert trial.calls == []


def test_an_uninstallation_says_what_it_did(trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    """`--uninstall` prints its sentence, and nothing is prepared or served."""
    assert trial.command().run(["--uninstall"]) == 0
    assert capsys.readouterr().out == "It is gone.\n"
    assert trial.calls == ["uninstall 80"]


def test_a_daemon_without_uninstallation_or_upstreams_flags(trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    """A daemon may do with the table COMMON; its help then does not mention klog's flags."""
    command = replace(trial.command(), table=(TABLE[0], *COMMON), uninstall=None, prepare=None)
    assert command.run([]) == 0
    assert trial.calls == ["serve 80 on uvloop"]
    assert command.run(["--help"]) == 0
    assert "klog" not in capsys.readouterr().out
    with pytest.raises(UsageError, match="unknown flag --uninstall"):
        command.run(["--uninstall"])


def test_flags_without_effect_are_named_in_one_warning(trial: Trial, capfd: pytest.CaptureFixture[str]) -> None:
    """The warning names the flags as they were written on the command line."""
    trial.command().run(["--logtostderr", "--enableProfile"])
    assert "flags without effect: --logtostderr, --enableProfile; they may be left out" in capfd.readouterr().err


def test_errors_of_a_daemon_come_out_as_they_are(trial: Trial) -> None:
    """Errors that a daemon raises in a group reach the caller in a group; `main` makes a sentence of them."""

    def fail(_flags: Flags, _settings: int) -> Coroutine[Any, Any, None]:
        async def daemon() -> None:
            async with asyncio.TaskGroup():
                raise ConfigurationError("something is wrong; correct it")

        return daemon()

    with pytest.raises(ExceptionGroup) as raised:
        replace(trial.command(), serve=fail).run([])
    assert raised.value.subgroup(ConfigurationError) is not None


def test_what_is_read_in_the_same_way_for_all() -> None:
    """All daemons build the User-Agent in one way, and read FORCENAMESPACED beside its flag."""
    flags = parse("p", TABLE, ["--custom-user-agent=of us"])
    assert user_agent("nmi", flags) == f"podidentity-nmi/{__version__} of us"
    assert user_agent("mic", parse("p", TABLE, [])) == f"podidentity-mic/{__version__}"
    assert not forces_namespaces(flags, {"FORCENAMESPACED": "no"})
    assert forces_namespaces(flags, {"FORCENAMESPACED": "True"})
    assert forces_namespaces(parse("p", TABLE, ["--forceNamespaced"]), {})
