"""The record of what MIC itself put on each target, in a ConfigMap: where the next leader finds it."""

import json

from podidentity.core import arm
from podidentity.core.arm import IdentityId, Target  # noqa: TC001  # one style of import for values
from podidentity.core.assigning import Policy
from podidentity.core.identities import ObjectKey
from podidentity.errors import ConfigurationError, NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.resources import CONFIG_MAPS
from podidentity.mic.ports import Put

RECORD = "assigned-by-mic"
"""The key of the ConfigMap under which the record stands."""
PLAIN_BYTES = 256 * 1024
"""A ConfigMap holds 1 MiB in all; 20 scale sets with 400 identities each would fill it."""


class ConfigMapRecords:
    """The record, in a ConfigMap: target path to resource IDs, as JSON that a person can read."""

    def __init__(self, api: Api, key: ObjectKey, policy: Policy) -> None:
        self._api = api
        self._key = key
        self._policy = policy

    async def load(self) -> Put | None:
        """Read the record; None when there is none yet."""
        try:
            found = await self._api.get(CONFIG_MAPS, self._key)
        except NotFoundError:
            return None
        text = (found.get("data") or {}).get(RECORD)
        return None if text is None else self._read(text)

    async def store(self, put: Put) -> None:
        """Write it, leaving the ConfigMap's other keys as they are."""
        text = render_record(put)
        try:
            found = await self._api.get(CONFIG_MAPS, self._key)
        except NotFoundError:
            metadata = {"namespace": self._key.namespace, "name": self._key.name}
            await self._api.create(CONFIG_MAPS, {"metadata": metadata, "data": {RECORD: text}})
            return
        data = {**(found.get("data") or {}), RECORD: text}
        await self._api.replace(CONFIG_MAPS, {**found, "data": data})

    def _read(self, text: str) -> Put:
        try:
            return read_record(text, self._policy)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            told = f'ConfigMap {self._key}: "{RECORD}" cannot be read ({error}); restore it, or delete that key'
            raise ConfigurationError(told) from None


def render_record(put: Put) -> str:
    """Write resource IDs by target; where that would fill the ConfigMap, each ID once and its numbers by target."""
    shown = {target.path: sorted(identity.text for identity in put[target]) for target in put}
    text = json.dumps(shown, indent=1, sort_keys=True)
    if len(text) <= PLAIN_BYTES:
        return text
    texts = sorted({one for identities in shown.values() for one in identities})
    number = {one: index for index, one in enumerate(texts)}
    targets = {path: [number[one] for one in identities] for path, identities in shown.items()}
    return json.dumps({"identities": texts, "targets": targets}, sort_keys=True)


def read_record(text: str, policy: Policy) -> Put:
    """Read either form. Raises ValueError, LookupError, AttributeError or TypeError when it is none: never guesses."""
    found = json.loads(text)
    if found.keys() == {"identities", "targets"}:
        texts, numbers = found["identities"], found["targets"]
        found = {path: [texts[number] for number in numbers[path]] for path in numbers}
    put: dict[Target, frozenset[IdentityId]] = {}
    for path, identities in found.items():
        target = arm.target_of("", f"azure://{path}", policy.subscription, policy.group)
        put[target] = frozenset(one for text in identities if (one := arm.parse_identity_id(str(text))))
    return put
