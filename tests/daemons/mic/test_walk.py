"""ARCHITECTURE.md's walk of a new pod is the way from the watch's event to the identity in Azure."""

from collections.abc import Awaitable, Callable
from typing import Any

import make
from walking import files_run, walk

LIBRARIES = ("core/model/", "kube/", "serving/")
"""As well as the modules of `podidentity` itself: `timing`, `bounded`, `http`, `errors`."""
STANDS_IN = "azure/compute.py"
"""The module in whose place these tests have machines in memory."""


async def test_a_new_pod_runs_the_files_of_its_walk(run_in_world: Callable[..., Awaitable[None]]) -> None:
    """A new pod runs the fifteen files that ARCHITECTURE.md lists, and no other that decides anything."""
    files, beside = walk("a new pod")

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(), make.binding(), make.pod())
        world.add(make.identity("other"), make.binding("other", azure_identity="other", selector="other"))
        await world.until(lambda: world.states() == {"web-default-reader": "Assigned"}, "Assigned")
        with files_run() as run:
            world.add(make.pod("new", selector="other"))
            await world.until(lambda: world.states().get("new-default-other") == "Assigned", "Assigned")
        decisive = {file for file in run if "/" in file and not file.startswith(LIBRARIES)}
        decisive |= {"core/model/matching.py", STANDS_IN}
        assert decisive - beside == set(files)
        assert len(files) == 15

    await run_in_world(story)
