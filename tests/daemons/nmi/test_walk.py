"""ARCHITECTURE.md's walk of a warm token request is the way that a request takes."""

import make
from daemons.nmi.harness import pod, serving
from walking import files_run, walk


async def test_a_warm_request_runs_the_files_of_its_walk() -> None:
    """A warm request runs the eight files that ARCHITECTURE.md lists, in their order, and no others."""
    files, beside = walk("a warm token request")
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        client = await nmi.connect()
        for _ in range(2):
            assert (await client.ask()).status == 200
        with files_run() as run:
            assert (await client.ask()).status == 200
    assert [file for file in run if file not in beside and not file.startswith("core/model/")] == files
    assert len(files) == 8
