"""How a controller runs: once at the start, and again after every change of the kinds that it watches."""

import asyncio
from collections.abc import Callable, Sequence

from podidentity_lab.kubernetes.statuses import ApiError
from podidentity_lab.kubernetes.storage import Storage


async def run(storage: Storage, resources: Sequence[str], reconcile: Callable[[], None]) -> None:
    """Reconcile until cancelled, once for changes that arrive together."""
    change = asyncio.Event()

    async def follow(resource: str) -> None:
        async for _ in storage.watch(resource):
            change.set()

    async with asyncio.TaskGroup() as group:
        for resource in resources:
            group.create_task(follow(resource))
        change.set()
        while True:
            await change.wait()
            change.clear()
            try:
                reconcile()
            except ApiError:  # somebody was faster: look again
                change.set()
                await asyncio.sleep(0)
