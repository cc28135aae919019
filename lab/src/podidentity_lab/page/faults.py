"""The faults of the lab's Azure as switches: which there are, which are on, and what to set for the others. Pure.

What a fault does is said by `podidentity_lab.azure.faults`; a switch is a set of its fields with values. The control
socket takes them as it takes those of `podidentity lab fault`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from podidentity_lab.azure.faults import Faults

DEFAULTS: dict[str, Any] = asdict(Faults())


@dataclass(frozen=True, slots=True)
class Switch:
    """A fault that a person turns on and off. `name` is its part of a URL, `value` what `field` is while it is on."""

    name: str
    service: str
    label: str
    field: str
    value: Any

    def is_on(self, faults: Mapping[str, Any]) -> bool:
        """Whether it is on. A list of answers is used up one by one, and is on until the last one."""
        current = faults[self.field]
        return bool(current) and current[0] == self.value[0] if isinstance(self.value, list) else current == self.value

    def change(self, faults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that turn it to the other side."""
        return {self.field: DEFAULTS[self.field] if self.is_on(faults) else self.value}


SWITCHES = (
    Switch("imds-fails", "IMDS", "answers every token request with 500", "imds_fails", 1.0),
    Switch("imds-slow", "IMDS", "takes 5 s for a token", "imds_seconds", 5.0),
    Switch("imds-busy", "IMDS", "answers the next 3 requests with 429", "imds_statuses", [429] * 3),
    Switch("imds-short", "IMDS", "issues tokens that live 5 minutes", "imds_token_seconds", 300),
    Switch("entra-slow", "Entra ID", "takes 5 s for a token", "entra_seconds", 5.0),
    Switch("entra-down", "Entra ID", "answers the next 3 requests with 503", "entra_statuses", [503] * 3),
    Switch(
        "entra-late", "Entra ID", "learns of federated credentials after 1 minute", "federation_delay_seconds", 60.0
    ),
    Switch("arm-throttle", "ARM", "throttles as Azure does", "throttle", True),
    Switch("arm-slow", "ARM", "takes 30 s to change a machine", "patch_seconds", 30.0),
    Switch("arm-down", "ARM", "answers the next 3 requests with 503", "arm_statuses", [503] * 3),
    Switch("blob-down", "Blob storage", "answers the next 3 requests with 503", "blob_statuses", [503] * 3),
    Switch("keyvault-down", "Key Vault", "answers the next 3 requests with 503", "keyvault_statuses", [503] * 3),
)
BY_NAME = {switch.name: switch for switch in SWITCHES}


def unnamed(faults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the faults that are set, by `podidentity lab fault` for example, and that no switch shows as on."""
    shown_fields = {switch.field for switch in SWITCHES if switch.is_on(faults)}
    return {
        name: value
        for name, value in faults.items()
        if name in DEFAULTS and value != DEFAULTS[name] and name not in shown_fields
    }
