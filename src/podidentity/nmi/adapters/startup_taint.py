"""`--startup-taint=KEY`: lets pods onto a node only once nothing there can reach the real IMDS.

Whoever makes nodes gives them the taint; NMI takes it away after its self-test stands, for which its role must allow
`get` and `patch` on nodes. Without that right it says so once and goes on asking, since the role may be corrected.
"""

import logging
from collections.abc import Callable
from typing import Any

from podidentity.core.model.identities import ObjectKey
from podidentity.errors import ConflictError, ForbiddenError, KubernetesError
from podidentity.kube.api import Api
from podidentity.kube.resources import NODES
from podidentity.timing import Clock

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2  # only while NMI starts
_AGAIN_SECONDS = 5.0
_FORBIDDEN_SECONDS = 60.0


async def remove_startup_taint(api: Api, node: str, key: str, ready: Callable[[], bool], clock: Clock) -> None:
    """Wait until `ready`, then take every taint with `key` off the node, as often as it takes to succeed."""
    while not ready():
        await clock.sleep(_LOOK_SECONDS)
    pause: float | None = 0.0
    is_warned = False
    while pause is not None:
        await clock.sleep(pause)
        try:
            await _remove(api, node, key)
            pause = None
        except ConflictError:
            pause = _LOOK_SECONDS  # a node's status is written all the time
        except KubernetesError as error:
            level = logging.DEBUG if is_warned else logging.WARNING
            _log.log(level, "the taint %s stays on node %s for now: %s", key, node, error)
            is_warned = True
            pause = _FORBIDDEN_SECONDS if isinstance(error, ForbiddenError) else _AGAIN_SECONDS


async def _remove(api: Api, node: str, key: str) -> None:
    content = await api.get(NODES.as_json(), ObjectKey("", node))
    taints: list[dict[str, Any]] = content.get("spec", {}).get("taints") or []
    remaining = [taint for taint in taints if taint.get("key") != key]
    if len(remaining) == len(taints):
        return
    version = {"resourceVersion": content["metadata"]["resourceVersion"]}  # another writer's taint must not be lost
    await api.patch(NODES, ObjectKey("", node), {"metadata": version, "spec": {"taints": remaining or None}})
    _log.info("pods are intercepted: the taint %s is removed from node %s", key, node)
