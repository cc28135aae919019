"""What a daemon decides about its certificates."""

import ssl
from dataclasses import dataclass, field

from podidentity.core.certificates.replacement import Schedule
from podidentity.core.model.identities import ObjectKey


@dataclass(frozen=True, slots=True)
class CertificateSettings:
    """One daemon's certificates. Its replicas must have the same settings."""

    secret: ObjectKey
    """The Secret with the CA, in the daemon's own namespace; its name is the CA's, too."""
    dns_names: tuple[str, ...]
    """The names by which clients reach the daemon, such as `broker.podidentity-system.svc`; at least one."""
    schedule: Schedule = field(default_factory=Schedule)
    """How long a CA and a serving certificate last."""
    look_seconds: float = 60.0
    """How often the Secret and all places of the bundle are looked at: what others changed is put right by then."""
    minimum_tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    """The oldest version of TLS that is spoken."""
