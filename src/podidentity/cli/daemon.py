"""The command of a daemon, the same for each: a command line to settings, then the daemon or its uninstallation.

The module of each daemon (`cli/nmi.py` and its like) says in a `DaemonCommand` what is its own. `main` runs it.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from podidentity import __version__
from podidentity.cli.flags import Flag, Flags, help_width, parse_leniently, render_help
from podidentity.serving import logs

_log = logging.getLogger(__name__)

S = TypeVar("S")
"""The settings of a daemon."""
Serve = Callable[[Flags, S], Coroutine[Any, Any, None]]
"""Returns the daemon, which runs until SIGTERM or SIGINT."""


@dataclass(frozen=True, slots=True)
class DaemonCommand(Generic[S]):
    """What one daemon's command has of its own. All of its functions may raise `PodIdentityError`."""

    program: str
    """As it is called: `podidentity nmi`."""

    summary: str
    """The first paragraph of `--help`."""

    example: str
    """A command line that works, for `--help`."""

    table: tuple[Flag, ...]
    """All of its flags; those of `flags.COMMON` must be among them."""

    settings_of: Callable[[Flags, Mapping[str, str]], S]
    """Makes settings of flags and environment variables, and refuses what is wrong in them."""

    serve: Serve[S]
    """It imports the daemon only when it is called: `--help` and an error in the command line are answered at once.
    """

    uninstall: Callable[[Flags, S], Coroutine[Any, Any, str]] | None = None
    """What a switch `uninstall` in the table does; the text that it returns is printed. None without such a switch."""

    prepare: Callable[[Flags], Serve[S] | None] | None = None
    """Runs before anything that refuses to start, an error in the command line included.

    It may return what is to be used in place of `serve`: a daemon that need not do again what is done.
    """

    def run(self, arguments: Sequence[str]) -> int:
        """Run the command and return its exit status. Raises `PodIdentityError`, also several in a group."""
        flags, error = parse_leniently(self.program, self.table, arguments)
        uninstalls = self.uninstall is not None and flags.switch("uninstall")
        serve = self.serve
        if self.prepare is not None and not (flags.switch("help") or flags.switch("version") or uninstalls):
            serve = self.prepare(flags) or serve
        if error is not None:
            raise error
        if flags.switch("help"):
            print(render_help(self.program, self.summary, self.table, self.example, help_width()))
        elif flags.switch("version"):
            print(f"{self.program}, version {__version__}")
        else:
            self._act(flags, serve, uninstalls=uninstalls)
        return 0

    def _act(self, flags: Flags, serve: Serve[S], *, uninstalls: bool) -> None:
        logs.set_up(flags.one_of("log-format", ("text", "json")), flags.number("v"))
        settings = self.settings_of(flags, os.environ)
        if flags.without_effect:
            names = ", ".join(f"--{name}" for name in flags.without_effect)
            _log.warning("flags without effect: %s; they may be left out", names)
        if self.uninstall is not None and uninstalls:
            print(asyncio.run(self.uninstall(flags, settings)))
            return
        daemon = serve(flags, settings)
        import uvloop  # noqa: PLC0415  # a daemon's event loop, which no other command needs

        uvloop.run(daemon)


def user_agent(component: str, flags: Flags) -> str:
    """Return the User-Agent of a daemon's requests: `podidentity-nmi/2.0.0` and the text of --custom-user-agent."""
    return f"podidentity-{component}/{__version__} {flags.text('custom-user-agent')}".strip()


def forces_namespaces(flags: Flags, environ: Mapping[str, str]) -> bool:
    """Whether pods use identities of their own namespace only: --forceNamespaced, or FORCENAMESPACED as upstream."""
    return flags.switch("forceNamespaced") or environ.get("FORCENAMESPACED", "").lower() == "true"
