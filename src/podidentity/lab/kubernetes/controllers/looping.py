"""How a controller runs: once at the start, and again after every change of the kinds that it watches."""

import asyncio
from collections.abc import Callable, Sequence

from podidentity.lab.kubernetes.statuses import ApiError
from podidentity.lab.kubernetes.storage import Storage


async def run(storage: Storage, resources: Sequence[str], reconcile: Callable[[], None]) -> None:
    """Reconcile until cancelled. Changes that arrive together are looked at once."""
    changed = asyncio.Event()

    async def follow(resource: str) -> None:
        async for _ in storage.watch(resource):
            changed.set()

    async with asyncio.TaskGroup() as group:
        for resource in resources:
            group.create_task(follow(resource))
        changed.set()
        while True:
            await changed.wait()
            changed.clear()
            try:
                reconcile()
            except ApiError:  # somebody was faster: look again
                changed.set()
                await asyncio.sleep(0)
