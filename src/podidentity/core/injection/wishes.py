"""From the annotations of a pod and its service account to what the pod gets: a door, an identity, a token."""

from collections.abc import Mapping
from dataclasses import dataclass

from podidentity.core.injection import rules as names
from podidentity.core.injection.rules import Door, Rules

_PORTS = range(1, 1 << 16)
_DIGITS = 9
_QUOTE = 64
"""So many characters of a wrong annotation are repeated."""


@dataclass(frozen=True, slots=True)
class Denial:
    """A pod that is refused; `message` says what to change."""

    message: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What a pod gets. `client_id` may be empty: then the program names its identity by itself.

    `warnings` are shown to whoever creates the pod. `exempt_containers` get nothing.
    """

    door: Door
    client_id: str
    tenant_id: str
    expiration_seconds: int
    exempt_containers: frozenset[str] = frozenset()
    old_path: bool = False
    warnings: tuple[str, ...] = ()


def read_wish(pod: Mapping[str, str], account: Mapping[str, str], account_name: str, rules: Rules) -> Wish | Denial:
    """Return what a pod with these annotations gets. `account` has those of its service account."""
    warnings: list[str] = []
    door = _door(pod, rules, warnings)
    if isinstance(door, Denial):
        return door
    seconds = _expiration(pod, account)
    if isinstance(seconds, Denial):
        return seconds
    path = pod.get(names.TOKEN_PATH, "").strip()
    if path not in {"", names.OLD_TOKEN_PATH}:
        warnings.append(f'annotation {names.TOKEN_PATH}: "{path[:_QUOTE]}" does nothing; give {names.OLD_TOKEN_PATH}')
    client_id = account.get(names.CLIENT_ID, "").strip()
    if not client_id:
        warnings.append(
            f"service account {account_name} has no annotation {names.CLIENT_ID}: the pod's programs must name their "
            "identity's client ID themselves"
        )
    return Wish(
        door,
        client_id,
        account.get(names.TENANT_ID, "").strip() or rules.tenant_id,
        seconds,
        frozenset(filter(None, map(str.strip, pod.get(names.SKIP_CONTAINERS, "").split(";")))),
        path == names.OLD_TOKEN_PATH,
        tuple(warnings),
    )


def _door(pod: Mapping[str, str], rules: Rules, warnings: list[str]) -> Door | Denial:
    """Return the one door of a pod, if it is offered."""
    door = _wanted_door(pod, rules, warnings)
    if door is Door.PROXY and rules.proxy is None:
        return Denial("the pod asks for the token proxy, but the webhook knows none; configure its broker")
    if door is Door.TOKEN_FILE and rules.token_file is None:
        return Denial(
            "the pod needs the token-file door of NMI, but the webhook does not know its port; set --token-file-port"
        )
    return door


def _wanted_door(pod: Mapping[str, str], rules: Rules, warnings: list[str]) -> Door | Denial:
    if names.DOOR in pod:
        try:
            return Door(pod[names.DOOR].strip())
        except ValueError:
            return Denial(f'annotation {names.DOOR}: "{pod[names.DOOR][:_QUOTE]}" is unknown; give {", ".join(Door)}')
    port = pod.get(names.SIDECAR_PORT)
    if port is not None and _number(port) not in _PORTS:
        return Denial(f'annotation {names.SIDECAR_PORT}: "{port[:_QUOTE]}" is no port; give a number from 1 to 65535')
    suffix = rules.proxy.suffix if rules.proxy is not None else "identity-binding"
    by_proxy = pod.get(f"{names.PREFIX}use-{suffix}", "").strip().lower() == "true"
    if names.SIDECAR in pod:
        if by_proxy:
            warnings.append(
                f"both {names.SIDECAR} and {names.PREFIX}use-{suffix} are set: the pod gets the token-file door, which "
                "needs no switch in the program"
            )
        return Door.TOKEN_FILE
    return Door.PROXY if by_proxy else Door.DIRECT


def _expiration(pod: Mapping[str, str], account: Mapping[str, str]) -> int | Denial:
    text = pod.get(names.EXPIRATION, account.get(names.EXPIRATION, str(names.EXPIRATION_SECONDS)))
    limits = range(names.EXPIRATION_SECONDS, names.LONGEST_EXPIRATION_SECONDS + 1)
    seconds = _number(text)
    if seconds in limits:
        return seconds
    return Denial(
        f'annotation {names.EXPIRATION}: "{text[:_QUOTE]}" must be whole seconds from {limits[0]} to {limits[-1]}'
    )


def _number(text: str) -> int:
    """Return the number that a text is; -1 for none, and for one that is longer than any that is asked for."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _DIGITS else -1
