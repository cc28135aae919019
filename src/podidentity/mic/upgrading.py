"""Rewrites stored objects to the schema's spelling, once, when `--enable-type-upgrade` was given explicitly.

Nobody needs it: both daemons read both spellings for ever, and so does the schema. It is here for those who want their
objects in one form, at the price of a difference that a GitOps tool will see. That it was done is recorded where
upstream records it, so that neither does it again.
"""

import logging

from podidentity import __version__
from podidentity.core import crd
from podidentity.core.identities import ObjectKey
from podidentity.errors import ConflictError, ForbiddenError, KubernetesError, NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.resources import ASSIGNED_IDENTITIES, BINDINGS, CONFIG_MAPS, EXCEPTIONS, IDENTITIES

_log = logging.getLogger(__name__)


async def try_upgrade(api: Api, config_map: ObjectKey, key: str) -> None:
    """Upgrade, or say why not: assigning identities does not wait for it."""
    try:
        await upgrade(api, config_map, key)
    except KubernetesError as error:
        _log.warning("stored objects keep their spelling until the next term: %s", error)


async def upgrade(api: Api, config_map: ObjectKey, key: str) -> int:
    """Rewrite what is spelled as in old manifests; how many objects. Raises KubernetesError when the API fails.

    A role without the right is said once, and nothing is recorded: the next leader tries again.
    """
    if (await _data(api, config_map)).get(key) == __version__:
        return 0
    written, overtaken = 0, 0
    for kind in (IDENTITIES, BINDINGS, ASSIGNED_IDENTITIES, EXCEPTIONS):
        whole = kind.whole()
        for stored in (await api.list(whole)).values:
            fresh = crd.respelled({"kind": kind.name, **stored})
            if fresh is None:
                continue
            try:
                await api.replace(whole, fresh)
            except ForbiddenError as error:
                _log.warning("stored objects keep their old spelling, which is read as well: %s", error)
                return written
            except (ConflictError, NotFoundError) as error:
                _log.info("not rewritten this time: %s", error)
                overtaken += 1
            else:
                written += 1
    if not overtaken:
        await _record(api, config_map, key)
    _log.info("%d stored objects were rewritten to the schema's spelling", written)
    return written


async def _data(api: Api, config_map: ObjectKey) -> dict[str, str]:
    try:
        return dict((await api.get(CONFIG_MAPS, config_map)).get("data") or {})
    except NotFoundError:
        return {}


async def _record(api: Api, config_map: ObjectKey, key: str) -> None:
    """Note the version that did it, beside the ConfigMap's other keys."""
    try:
        found = await api.get(CONFIG_MAPS, config_map)
    except NotFoundError:
        metadata = {"namespace": config_map.namespace, "name": config_map.name}
        await api.create(CONFIG_MAPS, {"metadata": metadata, "data": {key: __version__}})
        return
    await api.replace(CONFIG_MAPS, {**found, "data": {**(found.get("data") or {}), key: __version__}})
