"""The daemons' rights against what they do: nothing is refused, and nothing is granted that is never used.

The API server's audit log says what they did. Runs after all other tests of the cluster, whose requests are examined.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.harness import DEPLOY, Cluster

Right = tuple[str, str, str]
"""API group, resource, verb."""

MANIFEST = DEPLOY / "deployment-rbac.yaml"
WHILE_UPDATING = {("aadpodidentity.k8s.io", "azureassignedidentities", verb) for verb in ("list", "watch")}
"""Used only by an NMI of the release before, while an update replaces it."""
ACCOUNTS = {part: f"system:serviceaccount:default:aad-pod-id-{part}-service-account" for part in ("nmi", "mic")}


def test_every_request_of_the_daemons_was_allowed(installed: Cluster) -> None:
    """No request of NMI or MIC was answered with 403, except in namespaces that were being deleted.

    There the API server refuses new objects, such as events, with the same status, although the roles allow them.
    """
    refused = [
        (one["user"]["username"], one["requestURI"])
        for one in _requests(installed)
        if _status(one) == 403 and "because it is being terminated" not in one["responseStatus"].get("message", "")
    ]
    assert refused == []


def test_every_right_of_the_daemons_was_used(installed: Cluster) -> None:
    """Every verb in the daemons' roles was used by them: an unused right helps only an attacker.

    Excepted are rights that only an NMI of the release before uses, while an update replaces it.
    """
    used: dict[str, set[Right]] = {part: set() for part in ACCOUNTS}
    for one in _requests(installed):
        reference = one.get("objectRef") or {}
        for part, account in ACCOUNTS.items():
            if one["user"]["username"] == account:
                used[part].add((reference.get("apiGroup", ""), reference.get("resource", ""), one["verb"]))
    unused = {part: _granted(part) - used[part] for part in ACCOUNTS}
    assert {"nmi": unused["nmi"] - WHILE_UPDATING, "mic": unused["mic"]} == {"nmi": set(), "mic": set()}


@pytest.mark.parametrize("part", sorted(ACCOUNTS))
def test_no_daemon_may_make_tokens_or_look_through_secrets(installed: Cluster, part: str) -> None:
    """The API server says that neither MIC nor NMI may create pods' tokens, or list Secrets.

    NMI's role in these manifests, which is aad-pod-identity's, lets it read a Secret whose name it knows, for service
    principals (docs/decisions/secrets-by-name.md). MIC's does not.
    """
    user = f"--as={ACCOUNTS[part]}"
    questions = [("create", "serviceaccounts", "--subresource=token"), ("list", "secrets"), ("watch", "secrets")]
    for words in (*questions, *([("get", "secrets")] if part == "mic" else [])):
        process = installed.try_kubectl("auth", "can-i", *words, user, "-n", "kube-system")
        assert process.stdout.strip() == "no", words


def _requests(installed: Cluster) -> Iterator[dict[str, Any]]:
    return (one for one in installed.requests() if one["user"]["username"] in ACCOUNTS.values())


def _status(request: dict[str, Any]) -> int:
    return int(request.get("responseStatus", {}).get("code", 0))


def _granted(part: str, manifest: Path = MANIFEST) -> set[Right]:
    rights = set()
    for obj in yaml.safe_load_all(manifest.read_text()):
        if obj["kind"] in {"Role", "ClusterRole"} and obj["metadata"]["name"] == f"aad-pod-id-{part}-role":
            for rule in obj["rules"]:
                rights |= {
                    (group, resource, verb)
                    for group in rule["apiGroups"]
                    for resource in rule["resources"]
                    for verb in rule["verbs"]
                }
    return rights
