"""The record of what MIC itself assigned to each target, in a ConfigMap, where the next leader finds it."""

import json
import operator

import msgspec

from podidentity.core.model import arm
from podidentity.core.model.arm import IdentityId, Target  # noqa: TC001  # one style of import for values
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.policy import Policy
from podidentity.core.model.steps import Steps, finish
from podidentity.errors import ConfigurationError, NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.resources import CONFIG_MAPS
from podidentity.mic import slices
from podidentity.mic.ports import AssignedByMic

RECORD = "assigned-by-mic"
"""The ConfigMap's key whose value is the record."""
PLAIN_BYTES = 256 * 1024
"""A longer record is written in the compact form: 20 scale sets with 400 identities would fill a ConfigMap's 1 MiB."""
_PLAIN_CHARACTERS = 6  # of an ID in the plain form besides its own: indentation, quotes, comma, line end
_TEXT = operator.attrgetter("text")


class ConfigMapRecords:
    """The record in a ConfigMap, as JSON that people can read: resource IDs by target path."""

    def __init__(self, api: Api, key: ObjectKey, policy: Policy) -> None:
        self._api = api
        self._key = key
        self._policy = policy

    async def load(self) -> AssignedByMic | None:
        """Return the record; None when there is none yet.

        Raises KubernetesError, and ConfigurationError when the record cannot be read.
        """
        try:
            config_map = await self._api.get(CONFIG_MAPS, self._key)
        except NotFoundError:
            return None
        text = (config_map.get("data") or {}).get(RECORD)
        return None if text is None else self._parse(text)

    async def store(self, assigned_by_mic: AssignedByMic) -> None:
        """Write the record and leave the ConfigMap's other keys as they are. Raises KubernetesError."""
        text = await slices.run(render_in_steps(assigned_by_mic))
        try:
            config_map = await self._api.get(CONFIG_MAPS, self._key)
        except NotFoundError:
            metadata = {"namespace": self._key.namespace, "name": self._key.name}
            await self._api.create(CONFIG_MAPS, {"metadata": metadata, "data": {RECORD: text}})
            return
        data = {**(config_map.get("data") or {}), RECORD: text}
        await self._api.replace(CONFIG_MAPS, {**config_map, "data": data})

    def _parse(self, text: str) -> AssignedByMic:
        try:
            return parse_record(text, self._policy)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            message = f'ConfigMap {self._key}: "{RECORD}" cannot be read: {error}; restore it, or delete that key'
            raise ConfigurationError(message) from None


def render_record(assigned_by_mic: AssignedByMic) -> str:
    """Return a record as JSON: resource IDs by target path; if that is too long, every ID once and numbers by path."""
    return finish(render_in_steps(assigned_by_mic))


def render_in_steps(assigned_by_mic: AssignedByMic) -> Steps[str]:
    """Return the same in steps, a target in each: there may be 50 with 2,000 identities."""
    characters = sum(
        len(identity.text) + _PLAIN_CHARACTERS for identities in assigned_by_mic.values() for identity in identities
    )
    if characters <= PLAIN_BYTES:
        texts_by_path = {target.path: sorted(map(_TEXT, identities)) for target, identities in assigned_by_mic.items()}
        return json.dumps(texts_by_path, indent=1, sort_keys=True)
    texts: set[str] = set()
    for identities in assigned_by_mic.values():
        texts.update(map(_TEXT, identities))
        yield
    identity_texts = sorted(texts)
    numbers = {text: number for number, text in enumerate(identity_texts)}
    targets: dict[str, list[int]] = {}
    for target, identities in assigned_by_mic.items():
        targets[target.path] = sorted(map(numbers.__getitem__, map(_TEXT, identities)))
        yield
    return msgspec.json.encode({"identities": identity_texts, "targets": targets}, order="sorted").decode()


def parse_record(text: str, policy: Policy) -> AssignedByMic:
    """Return the record that a text of either form holds.

    Raises ValueError, LookupError, AttributeError or TypeError for any other text: it never guesses.
    """
    document = json.loads(text)
    if document.keys() == {"identities", "targets"}:
        texts, targets = document["identities"], document["targets"]
        document = {path: [texts[number] for number in targets[path]] for path in targets}
    assigned_by_mic: dict[Target, frozenset[IdentityId]] = {}
    for path, texts in document.items():
        target = arm.target_of("", f"azure://{path}", policy.subscription, policy.group)
        identities = (arm.parse_identity_id(str(text)) for text in texts)
        assigned_by_mic[target] = frozenset(identity for identity in identities if identity is not None)
    return assigned_by_mic
