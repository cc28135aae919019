"""Reads a kubeconfig, with lightkube: clusters, users, contexts, certificates, and programs that give tokens.

Called by `connection`, which imports this only when there is a kubeconfig.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx2
import yaml
from lightkube.config.client_adapter import AsyncClient, ConnectionParams, user_auth, verify_cluster
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError

from podidentity.errors import ConfigurationError
from podidentity.kube.connection import Where, behind_proxy, direct_client, explained, line_of

T = TypeVar("T")


def read(path: Path) -> Where:
    """Read the current context. Raises ConfigurationError, whose one sentence names the file."""
    source = f"kubeconfig {path}"
    config = _explained(source, lambda: _current(path))
    user = config.user or User()  # the client needs some
    config = config._replace(user=user)
    token_file = Path(config.abs_file(user.token_file)) if user.token_file else None

    def connect(timeout: httpx2.Timeout) -> httpx2.AsyncClient:
        return _explained(source, lambda: _client(config, user, timeout))

    return Where(source, str(config.cluster.server), token_file, connect)


def _client(config: SingleConfig, user: User, timeout: httpx2.Timeout) -> httpx2.AsyncClient:
    if behind_proxy():
        return AsyncClient(config, ConnectionParams(timeout=timeout))
    server = str(config.cluster.server)
    tls = verify_cluster(config.cluster, user, config.abs_file) if server.startswith("https:") else None
    return direct_client(server, tls, timeout, user_auth(user))


def _explained(source: str, act: Callable[[], T]) -> T:
    try:
        return explained(source, act)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source}: not YAML ({line_of(error)}); correct it") from error
    except ConfigError as error:
        raise ConfigurationError(f"{source}: {line_of(error)}; correct the file, or name another one") from error


def _current(path: Path) -> SingleConfig:
    config = KubeConfig.from_file(path).get()
    if config is None:  # pragma: no cover - lightkube returns None only for a default of None
        raise ConfigError("it names no current context")
    return config
