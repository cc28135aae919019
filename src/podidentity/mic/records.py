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
        shown = {target.path: sorted(identity.text for identity in put[target]) for target in put}
        text = json.dumps(shown, indent=1, sort_keys=True)
        try:
            found = await self._api.get(CONFIG_MAPS, self._key)
        except NotFoundError:
            metadata = {"namespace": self._key.namespace, "name": self._key.name}
            await self._api.create(CONFIG_MAPS, {"metadata": metadata, "data": {RECORD: text}})
            return
        data = {**(found.get("data") or {}), RECORD: text}
        await self._api.replace(CONFIG_MAPS, {**found, "data": data})

    def _read(self, text: str) -> Put:
        """Read what an earlier leader wrote. Raises ConfigurationError: a guess could take identities from pods."""
        try:
            written = {str(path): [str(one) for one in identities] for path, identities in json.loads(text).items()}
        except (ValueError, AttributeError, TypeError) as error:
            told = f'ConfigMap {self._key}: "{RECORD}" cannot be read ({error}); restore it, or delete that key'
            raise ConfigurationError(told) from None
        put: dict[Target, frozenset[IdentityId]] = {}
        for path, identities in written.items():
            target = arm.target_of("", f"azure://{path}", self._policy.subscription, self._policy.group)
            put[target] = frozenset(found for one in identities if (found := arm.parse_identity_id(one)))
        return put
