"""Reads the settings that `explain` and `doctor` depend on from the command lines of a cluster's daemons."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from podidentity.cli import flags, mic, nmi
from podidentity.cli.daemon import forces_namespaces
from podidentity.cli.flags import Flag, Flags
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.policy import Policy
from podidentity.core.report.diagnosing import Daemon
from podidentity.errors import UsageError


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """The settings that decide which pod gets which identity. A daemon that is absent has its defaults."""

    policy: Policy
    managed_mode: bool
    mic_namespace: str
    startup_taint: str
    lock: ObjectKey
    record: ObjectKey
    """The ConfigMap; its namespace is MIC's own and left empty."""
    token_file_port: int
    """Of NMI's token-file door; 0: it is not served."""


def read_settings(mics: Iterable[Daemon], nmis: Iterable[Daemon]) -> DaemonSettings:
    """Return the settings on the command lines of one pod of each daemon."""
    of_mic, mic_environ = _read("mic", mic.TABLE, mics)
    of_nmi, nmi_environ = _read("nmi", nmi.TABLE, nmis)
    managed = of_nmi.text("operation-mode") == "managed"
    leading, environ = (of_nmi, nmi_environ) if managed else (of_mic, mic_environ)
    return DaemonSettings(
        Policy(
            force_namespaced=forces_namespaces(leading, environ),
            allow_list=leading.switch("namespace-allow-list"),
            assign_on_binding=of_mic.text("assign-on") == "binding",
        ),
        managed_mode=managed,
        mic_namespace=of_nmi.text("MICNamespace"),
        startup_taint=of_nmi.text("startup-taint"),
        lock=ObjectKey(of_mic.text("leader-election-namespace"), of_mic.text("leader-election-name")),
        record=ObjectKey("", of_mic.text("config-map-name")),
        token_file_port=of_nmi.number("token-file-port"),
    )


def _read(program: str, table: Sequence[Flag], daemons: Iterable[Daemon]) -> tuple[Flags, Mapping[str, str]]:
    """Return the flags and the environment of the first daemon; defaults where its command line is not ours."""
    first = next(iter(daemons), None)
    try:
        options = flags.parse(program, table, first.arguments if first else ())
    except UsageError:
        options = flags.parse(program, table, ())
    return options, first.environ if first else {}
