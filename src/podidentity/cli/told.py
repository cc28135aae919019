"""What the daemons of a cluster were told on their command lines, as far as `explain` and `doctor` depend on it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from podidentity.cli import flags, mic, nmi
from podidentity.cli.flags import Flag, Flags
from podidentity.core.assigning import Policy
from podidentity.core.diagnosing import Daemon
from podidentity.errors import UsageError


@dataclass(frozen=True, slots=True)
class Told:
    """The settings that decide who gets what. A daemon that is not there has its defaults."""

    policy: Policy
    managed_mode: bool
    mic_namespace: str
    startup_taint: str


def told(mics: Iterable[Daemon], nmis: Iterable[Daemon]) -> Told:
    """Read the arguments of one pod of each."""
    of_mic, mic_environ = _read("mic", mic.TABLE, mics)
    of_nmi, nmi_environ = _read("nmi", nmi.TABLE, nmis)
    managed = of_nmi.text("operation-mode") == "managed"
    leading, environ = (of_nmi, nmi_environ) if managed else (of_mic, mic_environ)
    return Told(
        Policy(
            force_namespaced=leading.switch("forceNamespaced") or environ == "true",
            allow_list=leading.switch("namespace-allow-list"),
            assign_on_binding=of_mic.text("assign-on") == "binding",
        ),
        managed_mode=managed,
        mic_namespace=of_nmi.text("MICNamespace"),
        startup_taint=of_nmi.text("startup-taint"),
    )


def _read(program: str, table: Sequence[Flag], daemons: Iterable[Daemon]) -> tuple[Flags, str]:
    """The flags of the first daemon, and its FORCENAMESPACED; defaults where its command line is none of ours."""
    first = next(iter(daemons), None)
    try:
        given = flags.parse(program, table, first.arguments if first else ())
    except UsageError:
        given = flags.parse(program, table, ())
    return given, (first.environ.get("FORCENAMESPACED", "") if first else "").lower()
