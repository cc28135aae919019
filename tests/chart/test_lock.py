"""MICs of two releases in two namespaces, as real processes with the flags that the chart gives them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment import crds

import chart
from daemons.mic.members import Stage, member, staged
from podidentity.kube.locks import ANNOTATION


def election_flags(namespace: str) -> Iterator[str]:
    """Yield the flags for its lock that MIC of a release in this namespace gets."""
    for path, text in chart.templates({}, namespace=namespace).items():
        if path.endswith("mic-deployment.yaml"):
            (container,) = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
            yield from (flag for flag in container["args"] if flag.startswith("--leader-election"))


@pytest.mark.parametrize("first", ["predecessor", "release"])
async def test_two_releases_have_one_leader(tmp_path: Path, first: str) -> None:
    """The second MIC stands by and logs who leads; there is one lock, in `default`."""
    async with staged(tmp_path, list(crds.all_definitions())) as stage:
        # The predecessor's chart gives its MIC no flag: its default is the namespace `default`.
        flags = () if first == "predecessor" else tuple(election_flags("kube-system"))
        async with member(stage, "a", *flags), member(stage, "b", *election_flags("migrated")) as second:
            await stage.until(lambda: len(leaders(stage)) == 1, "a leader")
            (leader,) = leaders(stage)
            other = "b" if leader == "a" else "a"
            log = tmp_path / f"{other}.log"
            await stage.until(lambda: f"{leader} leads; {other} stands by" in log.read_text(), "the other stands by")
            assert len(leaders(stage)) == 1
            if leader == "a":
                assert await second.page() == "Not Active"
        assert [one["metadata"]["namespace"] for one in locks(stage)] == ["default"]


def locks(stage: Stage) -> list[dict[str, Any]]:
    """Return all lock objects of the cluster."""
    found: list[dict[str, Any]] = stage.kubernetes.storage.list("endpoints")
    return [one for one in found if one["metadata"]["name"] == "aad-pod-identity-mic"]


def leaders(stage: Stage) -> set[str]:
    """Return the holders that the lock objects name."""
    texts = [one["metadata"]["annotations"][ANNOTATION] for one in locks(stage)]
    return {json.loads(text)["holderIdentity"] for text in texts} - {""}
