"""Finds the kubeconfig or the pod's service account and opens an authenticated HTTP client.

The order is upstream's: the flag, the environment variable KUBECONFIG, the service account of the pod we run in.
"""

import os
import ssl
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.request import getproxies

import httpx2

from podidentity.errors import ConfigurationError
from podidentity.kube.transport import Transport
from podidentity.timing import SYSTEM_CLOCK, Clock

ANSWER_TIMEOUT_SECONDS = 30.0
"""The API server itself gives up on an ordinary request after 60 s; a healthy one answers a page of 500 pods in one."""

TOKEN_AGE_SECONDS = 60.0
"""kubelet replaces the token at 80 % of its life; client-go reads it again every minute, and so do we."""

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where kubelet puts a pod's credentials (kubernetes.io/docs/tasks/run-application/access-api-from-pod)."""

_CONNECT_SECONDS = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """How to reach a cluster; `source` says where that was found and is named in errors.

    `connect` opens a client and raises ConfigurationError for a file that cannot be read. `namespace` is that of the
    kubeconfig's context.
    """

    source: str
    server: str
    token_file: Path | None
    connect: Callable[[httpx2.Timeout], httpx2.AsyncClient]
    namespace: str = "default"


def find_cluster(
    kubeconfig: str = "",
    environ: Mapping[str, str] = os.environ,
    *,
    service_account: Path = SERVICE_ACCOUNT,
    home: Path | None = None,
    context: str = "",
) -> ClusterAccess:
    """Return how to reach the cluster.

    `home` is for commands that a person runs: its `.kube/config` is tried last. `context` names one of a kubeconfig;
    empty: its current one. Raises ConfigurationError.
    """
    personal = home / ".kube" / "config" if home else None
    path = kubeconfig or environ.get("KUBECONFIG", "")
    if path:
        return _from_file(Path(path).expanduser(), context)
    if context and personal and personal.is_file():
        return _from_file(personal, context)
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return _from_service_account(service_account, environ)
    if personal and personal.is_file():
        return _from_file(personal, context)
    raise ConfigurationError(
        "no cluster to talk to: neither --kubeconfig nor KUBECONFIG is set, and this is not a pod "
        "(KUBERNETES_SERVICE_HOST is empty); set KUBECONFIG to the path of a kubeconfig"
    )


def open_client(
    access: ClusterAccess, user_agent: str = "podidentity", clock: Clock = SYSTEM_CLOCK
) -> httpx2.AsyncClient:
    """Open an HTTP client that is authenticated and trusts the cluster's CA; relative URLs go to the API server.

    The caller closes it. Raises ConfigurationError when a certificate, key or CA cannot be read.
    """
    timeout = httpx2.Timeout(ANSWER_TIMEOUT_SECONDS, connect=_CONNECT_SECONDS)
    client = translate_errors(access.source, lambda: access.connect(timeout))
    client.headers["User-Agent"] = user_agent
    # To compress a list takes longer than to send it over the cluster's network.
    client.headers["Accept-Encoding"] = "identity"
    if access.token_file is not None:
        client.auth = RotatingToken(access.token_file, clock)
    return client


def behind_proxy() -> bool:
    """Whether the environment names a proxy, as on a laptop; httpx2's own transport can use one, ours cannot."""
    return bool(getproxies().keys() & {"http", "https", "all"})


def direct_client(
    server: str, tls: ssl.SSLContext | None, timeout: httpx2.Timeout, auth: httpx2.Auth | None = None
) -> httpx2.AsyncClient:
    """Return a client on our own transport."""
    url = httpx2.URL(server)
    return httpx2.AsyncClient(base_url=url, auth=auth, timeout=timeout, transport=Transport(url, tls), trust_env=False)


class RotatingToken(httpx2.Auth):
    """A bearer token in a file that kubelet renews: read again each minute, and at once when it is refused."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._read_at = float("-inf")
        self._bearer = ""

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Send with the token; after a 401, once more if the file has a newer one."""
        if self._clock.steady() - self._read_at >= TOKEN_AGE_SECONDS:
            self._read()
        previous = self._bearer
        request.headers["Authorization"] = previous
        response = yield request
        if response.status_code != httpx2.codes.UNAUTHORIZED:
            return
        self._read()
        if self._bearer != previous:
            request.headers["Authorization"] = self._bearer
            yield request

    def _read(self) -> None:
        try:
            token = self._path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            token = ""
        # Between unlink and rename the file may be missing: the old token is still good for a while.
        if token:
            self._bearer = f"Bearer {token}"
        self._read_at = self._clock.steady()


def _from_file(path: Path, context: str) -> ClusterAccess:
    from podidentity.kube import kubeconfig  # noqa: PLC0415  # a pod needs neither lightkube nor YAML, which take a sixth of the start

    return kubeconfig.read(path, context)


def _from_service_account(directory: Path, environ: Mapping[str, str]) -> ClusterAccess:
    source = f"service account in {directory}"
    token_file = directory / "token"

    def read() -> str:
        token_file.read_text(encoding="ascii")  # fails early in a pod without a token
        host, port = environ["KUBERNETES_SERVICE_HOST"], environ["KUBERNETES_SERVICE_PORT"]
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    server = translate_errors(source, read)

    def connect(timeout: httpx2.Timeout) -> httpx2.AsyncClient:
        trusted = ssl.create_default_context(cafile=directory / "ca.crt")
        if behind_proxy():
            return httpx2.AsyncClient(base_url=server, verify=trusted, timeout=timeout)
        return direct_client(server, trusted, timeout)

    return ClusterAccess(source, server, token_file, connect)


def translate_errors(source: str, read: Callable[[], T]) -> T:
    """Return what `read` returns; its errors become ConfigurationErrors that name `source`."""
    try:
        return read()
    except FileNotFoundError as error:
        raise ConfigurationError(f"{source}: {error.filename or error} does not exist; correct the path") from error
    except PermissionError as error:
        raise ConfigurationError(f"{source}: {error.filename or error} may not be read; check its mode") from error
    except IsADirectoryError as error:
        raise ConfigurationError(f"{source}: {error.filename or error} is a directory; name a file in it") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source}: it is not text; correct the file, or name another one") from error
    except KeyError as error:
        raise ConfigurationError(f"{source}: {error} is missing or names nothing; add it") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        # For wrong types, bad base64 and invalid certificates, lightkube raises whatever error they cause.
        raise ConfigurationError(f"{source}: {line_of(error)}; correct the file, or name another one") from error


def line_of(error: Exception) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())
