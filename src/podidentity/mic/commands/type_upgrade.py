"""Rewrites stored objects to the schema's spelling, once, when `--enable-type-upgrade` was set explicitly.

Nobody needs it: the daemons and the schema read both spellings. It is for those who want their objects in one
form, at the price of a difference that a GitOps tool will see. That it was done is recorded where upstream records it,
so that neither program does it again.
"""

import logging

from podidentity import __version__
from podidentity.core.model import crd
from podidentity.core.model.identities import ObjectKey
from podidentity.errors import ConflictError, ForbiddenError, KubernetesError, NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.resources import ASSIGNED_IDENTITIES, BINDINGS, CONFIG_MAPS, EXCEPTIONS, IDENTITIES

_log = logging.getLogger(__name__)


async def try_upgrade(api: Api, config_map: ObjectKey, key: str) -> None:
    """Upgrade, or log why not: assigning identities does not depend on it."""
    try:
        await upgrade(api, config_map, key)
    except KubernetesError as error:
        _log.warning("stored objects keep their spelling until the next term: %s", error)


async def upgrade(api: Api, config_map: ObjectKey, key: str) -> int:
    """Rewrite the objects spelled as in old manifests, and record that under `key`. Return how many were rewritten.

    A missing right is logged once and nothing is recorded: the next leader tries again. Raises KubernetesError.
    """
    if (await _data_of(api, config_map)).get(key) == __version__:
        return 0
    rewritten, conflicts = 0, 0
    for kind in (IDENTITIES, BINDINGS, ASSIGNED_IDENTITIES, EXCEPTIONS):
        raw_kind = kind.as_json()
        for current in (await api.list(raw_kind)).values:
            updated = crd.respelled({"kind": kind.name, **current})
            if updated is None:
                continue
            try:
                await api.replace(raw_kind, updated)
            except ForbiddenError as error:
                _log.warning("stored objects keep their old spelling, which is read as well: %s", error)
                return rewritten
            except (ConflictError, NotFoundError) as error:
                _log.info("not rewritten this time: %s", error)
                conflicts += 1
            else:
                rewritten += 1
    if not conflicts:
        await _record(api, config_map, key)
    _log.info("%d stored objects were rewritten to the schema's spelling", rewritten)
    return rewritten


async def _data_of(api: Api, config_map: ObjectKey) -> dict[str, str]:
    try:
        return dict((await api.get(CONFIG_MAPS, config_map)).get("data") or {})
    except NotFoundError:
        return {}


async def _record(api: Api, config_map: ObjectKey, key: str) -> None:
    """Record the version that did it, beside the ConfigMap's other keys."""
    try:
        current = await api.get(CONFIG_MAPS, config_map)
    except NotFoundError:
        metadata = {"namespace": config_map.namespace, "name": config_map.name}
        await api.create(CONFIG_MAPS, {"metadata": metadata, "data": {key: __version__}})
        return
    await api.replace(CONFIG_MAPS, {**current, "data": {**(current.get("data") or {}), key: __version__}})
