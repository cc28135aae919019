"""`podidentity broker` that replaces its certificates within seconds; everything else is the daemon as it is.

Usually a new CA is not used for ten minutes, until kubelets have brought it into every pod.
"""

from dataclasses import replace

from podidentity.broker import lifecycle
from podidentity.broker.settings import Settings
from podidentity.certificates.settings import CertificateSettings
from podidentity.cli.main import main
from podidentity.core.certificates.replacement import Schedule

_certificate_settings = lifecycle.certificate_settings


def _quick(settings: Settings) -> CertificateSettings:
    schedule = Schedule(serving_seconds=8.0, spread_seconds=4.0)
    return replace(_certificate_settings(settings), schedule=schedule, look_seconds=0.5)


lifecycle.certificate_settings = _quick
main()
