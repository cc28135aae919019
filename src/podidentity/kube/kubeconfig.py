"""Reads a kubeconfig, with lightkube: clusters, users, contexts, certificates, and programs that give tokens.

Imported only when there is a kubeconfig: a pod needs neither lightkube nor YAML.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import yaml
from lightkube.config.client_adapter import AsyncClient, ConnectionParams, user_auth, verify_cluster
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError

from podidentity.core.model.wording import some_of
from podidentity.errors import ConfigurationError
from podidentity.kube.connection import ClusterAccess, behind_proxy, direct_client, line_of, translate_errors

T = TypeVar("T")

_NAMES = 5


def read(path: Path, context: str = "") -> ClusterAccess:
    """Return how to reach the cluster of a context; "" is the current one. A ConfigurationError names the file."""
    source = f"kubeconfig {path}"
    config = _translate_errors(source, lambda: _configuration(path, context))
    user = config.user or User()  # the client needs one
    config = config._replace(user=user)
    token_file = Path(config.abs_file(user.token_file)) if user.token_file else None

    def connect(timeout: httpx2.Timeout) -> httpx2.AsyncClient:
        return _translate_errors(source, lambda: _client(config, user, timeout))

    return ClusterAccess(source, str(config.cluster.server), token_file, connect, config.namespace or "default")


def _check_context(path: Path, content: Mapping[str, Any], context: str) -> None:
    names = [str(item.get("name")) for item in content.get("contexts") or () if isinstance(item, dict)]
    if context not in names:
        advice = f"give one of {some_of(names, _NAMES)}" if names else "name another file"
        raise ConfigurationError(f'kubeconfig {path}: it has no context "{context}"; {advice}')


def _client(config: SingleConfig, user: User, timeout: httpx2.Timeout) -> httpx2.AsyncClient:
    if behind_proxy():
        return AsyncClient(config, ConnectionParams(timeout=timeout))
    server = str(config.cluster.server)
    tls = verify_cluster(config.cluster, user, config.abs_file) if server.startswith("https:") else None
    return direct_client(server, tls, timeout, user_auth(user))


def _translate_errors(source: str, act: Callable[[], T]) -> T:
    try:
        return translate_errors(source, act)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source}: not YAML ({line_of(error)}); correct it") from error
    except ConfigError as error:
        raise ConfigurationError(f"{source}: {line_of(error)}; correct the file, or name another one") from error


def _configuration(path: Path, context: str) -> SingleConfig:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        reason = "it is no kubeconfig" if content else "it is empty"
        raise ConfigurationError(f"kubeconfig {path}: {reason}; name another file")
    if context:
        _check_context(path, content, context)
    config = KubeConfig.from_file(path).get(context or None)
    if config is None:  # pragma: no cover - lightkube returns None only for a default of None
        raise ConfigError("it names no current context")
    return config
