"""The options of every command that reads a cluster, spelled as kubectl spells them."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from podidentity.kube.connection import ClusterAccess, find_cluster

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Which cluster, and which of its namespaces; "" is what the kubeconfig says."""

    kubeconfig: str
    context: str
    namespace: str

    def find(self) -> ClusterAccess:
        """Return how to reach the cluster. Raises ConfigurationError."""
        return find_cluster(self.kubeconfig, os.environ, home=home(), context=self.context)


def cluster_options(command: F) -> F:
    """Add the options to a click command; it gets them as one parameter, `cluster`."""

    @functools.wraps(command)
    def with_cluster(*arguments: Any, kubeconfig: str, context: str, namespace: str, **options: Any) -> Any:
        return command(*arguments, cluster=ClusterOptions(kubeconfig, context, namespace), **options)

    for option in reversed(_OPTIONS):
        with_cluster = option(with_cluster)
    return with_cluster  # type: ignore[return-value]  # click calls it by its options


_OPTIONS = (
    click.option("--kubeconfig", default="", help="Path of a kubeconfig; empty: KUBECONFIG, ~/.kube/config."),
    click.option("--context", default="", help="Context of the kubeconfig; empty: its current one."),
    click.option("--namespace", "-n", default="", help="Empty: the context's; for --all and doctor: all."),
)


def home() -> Path | None:
    """Return the directory of a person's kubeconfig; None for users without a home."""
    try:
        return Path.home()
    except RuntimeError:
        return None
