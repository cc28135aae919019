"""The way to the API server: finds the kubeconfig or the pod's service account and opens an authenticated HTTP client.

Order, as upstream's: the flag, the environment variable KUBECONFIG, the service account of the pod we run in.
lightkube reads the file; requests are made by `api`. Called by each daemon's `daemon.py` and by `explain` and `doctor`.
"""

import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.request import getproxies

import httpx2
import yaml
from lightkube.config.client_adapter import AsyncClient, ConnectionParams, user_auth, verify_cluster
from lightkube.config.kubeconfig import SERVICE_ACCOUNT, KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError

from podidentity.errors import ConfigurationError
from podidentity.kube.clock import SYSTEM_CLOCK, Clock
from podidentity.kube.transport import Transport

ANSWER_TIMEOUT_SECONDS = 30.0
"""The API server itself gives up on an ordinary request after 60 s; a healthy one answers a page of 500 pods in one."""

TOKEN_AGE_SECONDS = 60.0
"""kubelet replaces the token at 80 % of its life; client-go reads it again every minute, and so do we."""

_CONNECT_SECONDS = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Where:
    """Which cluster, and where that was found: what errors name."""

    source: str
    config: SingleConfig

    @property
    def server(self) -> str:
        """The API server's address."""
        return str(self.config.cluster.server)


def find_cluster(
    kubeconfig: str = "",
    environ: Mapping[str, str] = os.environ,
    *,
    service_account: Path = Path(SERVICE_ACCOUNT),
    home: Path | None = None,
) -> Where:
    """Find out which cluster to talk to.

    `home` is for commands that a person runs: its `.kube/config` comes last. Raises ConfigurationError, whose one
    sentence names the file and what to do.
    """
    personal = home / ".kube" / "config" if home else None
    named = kubeconfig or environ.get("KUBECONFIG", "")
    if named:
        return _from_file(Path(named).expanduser())
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return _from_service_account(service_account)
    if personal and personal.is_file():
        return _from_file(personal)
    raise ConfigurationError(
        "no cluster to talk to: neither --kubeconfig nor KUBECONFIG is set, and this is not a pod "
        "(KUBERNETES_SERVICE_HOST is empty); set KUBECONFIG to the path of a kubeconfig"
    )


def open_client(where: Where, user_agent: str = "podidentity", clock: Clock = SYSTEM_CLOCK) -> httpx2.AsyncClient:
    """Open an HTTP client that is authenticated and trusts the cluster's CA; relative URLs go to the API server.

    The caller closes it. Raises ConfigurationError when a certificate, key or CA cannot be read.
    """
    timeout = httpx2.Timeout(ANSWER_TIMEOUT_SECONDS, connect=_CONNECT_SECONDS)
    client = _explained(where.source, lambda: _client(where.config, timeout))
    client.headers["User-Agent"] = user_agent
    # Compressing a list costs the server and us more than the cluster's network does.
    client.headers["Accept-Encoding"] = "identity"
    user = where.config.user
    if user is not None and user.token_file:
        client.auth = RotatingToken(Path(where.config.abs_file(user.token_file)), clock)
    return client


def _client(config: SingleConfig, timeout: httpx2.Timeout) -> httpx2.AsyncClient:
    if getproxies().keys() & {"http", "https", "all"}:  # somebody's laptop: httpx2 knows how to go through one
        return AsyncClient(config, ConnectionParams(timeout=timeout))
    user = config.user or User()
    server = httpx2.URL(config.cluster.server)
    tls = verify_cluster(config.cluster, user, config.abs_file) if server.scheme == "https" else None
    return httpx2.AsyncClient(
        base_url=server, auth=user_auth(user), timeout=timeout, transport=Transport(server, tls), trust_env=False
    )


class RotatingToken(httpx2.Auth):
    """A bearer token in a file that somebody renews: read again each minute, and at once when it is refused."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._read_at = float("-inf")
        self._bearer = ""

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Add the token; after a 401, once more with a newer one if there is one."""
        if self._clock.now() - self._read_at >= TOKEN_AGE_SECONDS:
            self._read()
        sent = self._bearer
        request.headers["Authorization"] = sent
        response = yield request
        if response.status_code != httpx2.codes.UNAUTHORIZED:
            return
        self._read()
        if self._bearer != sent:
            request.headers["Authorization"] = self._bearer
            yield request

    def _read(self) -> None:
        try:
            token = self._path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            token = ""
        # Between unlink and rename the file may be away: the old token is good for another while.
        if token:
            self._bearer = f"Bearer {token}"
        self._read_at = self._clock.now()


def _from_file(path: Path) -> Where:
    source = f"kubeconfig {path}"

    def read() -> SingleConfig:
        config = KubeConfig.from_file(path).get()
        if config is None:  # pragma: no cover - lightkube returns None only for a default of None
            raise ConfigError("it names no current context")
        return config

    return Where(source, _with_user(_explained(source, read)))


def _from_service_account(directory: Path) -> Where:
    source = f"service account in {directory}"

    def read() -> SingleConfig:
        config = KubeConfig.from_service_account(directory).get()
        if config is None:  # pragma: no cover - it always names its one context
            raise ConfigError("it names no current context")
        return config

    return Where(source, _explained(source, read))


def _with_user(config: SingleConfig) -> SingleConfig:
    """Give a context without a user an empty one: the client needs some."""
    return config if config.user is not None else config._replace(user=User())


def _explained(source: str, read: Callable[[], T]) -> T:
    """Run `read`; whatever is wrong with the file becomes one sentence that names it."""
    try:
        return read()
    except FileNotFoundError as error:
        raise ConfigurationError(f"{source}: {error.filename or error} does not exist; correct the path") from error
    except PermissionError as error:
        raise ConfigurationError(f"{source}: {error.filename or error} may not be read; check its mode") from error
    except KeyError as error:
        raise ConfigurationError(f"{source}: {error} is missing or names nothing; add it") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source}: not YAML ({_line(error)}); correct it") from error
    except ConfigError as error:
        raise ConfigurationError(f"{source}: {_line(error)}; correct the file, or name another one") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        # Wrong shapes, bad base64, certificates that are none: lightkube lets them through as they come.
        raise ConfigurationError(f"{source}: {_line(error)}; correct the file, or name another one") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
