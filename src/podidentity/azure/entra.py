"""Tokens of service principals from Entra ID, with a secret or with a certificate (PKCS#12), through msal.

msal is synchronous and heavy: it is imported when the first such token is asked for, and runs in a thread. It makes two
calls for a token: GET of the tenant's openid-configuration, then POST to the token endpoint which that names; the
authorities of other clouds are never asked whether this one is known (`instance_discovery=False`). Nothing is
remembered here. Proxies and certificate authorities come from the environment (HTTPS_PROXY, SSL_CERT_FILE).
Called by `nmi.principals`.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx2

from podidentity.azure.management import retry_after
from podidentity.errors import AzureError, ConfigurationError

_TIMEOUT = httpx2.Timeout(8.0, connect=3.0)  # a thread cannot be cancelled: two calls must end within a pod's grace
_TOLD_CHARACTERS = 600  # Entra ID's own sentences have up to 500, with the IDs that its support asks for
_SERVER_ERROR = 500
_THROTTLED = 429


class Certificate(NamedTuple):
    """A PKCS#12 archive and what it is locked with; never shown."""

    archive: bytes
    password: bytes

    def __repr__(self) -> str:
        return "Certificate(...)"


class Application(NamedTuple):
    """Who asks, where, and how it proves who it is: with a secret or a certificate. `login` has no slash at its end."""

    login: str
    tenant_id: str
    client_id: str
    credential: str | Certificate

    def __repr__(self) -> str:
        return f"Application({self.login}, {self.tenant_id}, ...)"


class Granted(NamedTuple):
    """A token and for how long it is good."""

    access_token: str
    expires_in_seconds: int

    def __repr__(self) -> str:
        return f"Granted(..., {self.expires_in_seconds})"


class Entra:
    """Entra ID of every cloud. `threads` are for its calls; without, they take the event loop's.

    The loop's are few, and a daemon changes its host with them: calls that hang must not hold that up.
    """

    def __init__(self, threads: ThreadPoolExecutor | None = None) -> None:
        self._threads = threads

    async def token(self, application: Application, resource: str) -> Granted:
        """Ask for a token. Raises `AzureError` with Entra ID's words, `ConfigurationError` for a bad certificate."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, _ask, application, resource)


class _Http:
    """msal's HTTP client: ours, which keeps the last answer because msal drops what it says of an unknown tenant."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client
        self.last: httpx2.Response | None = None

    def get(self, url: str, **given: Any) -> httpx2.Response:
        return self._keep(self._client.get(url, **given))

    def post(self, url: str, data: Mapping[str, str | bytes], **given: Any) -> httpx2.Response:
        # Assertions are bytes, of which this client would send the repr.
        form = {name: value.decode() if isinstance(value, bytes) else value for name, value in data.items()}
        return self._keep(self._client.post(url, data=form, **given))

    def close(self) -> None:
        self._client.close()

    def _keep(self, answer: httpx2.Response) -> httpx2.Response:
        self.last = answer
        return answer


def _ask(application: Application, resource: str) -> Granted:
    """Ask once, in a thread."""
    import msal  # noqa: PLC0415  # 6 MiB that a node with managed identities alone never needs
    from msal.exceptions import MsalServiceError  # noqa: PLC0415  # likewise

    login, tenant, client_id, credential = application
    proof = credential if isinstance(credential, str) else _opened(credential)
    with httpx2.Client(timeout=_TIMEOUT, follow_redirects=False) as client:
        http = _Http(client)
        try:
            asking = msal.ConfidentialClientApplication(
                client_id,
                client_credential=proof,
                authority=f"{login}/{tenant}",
                instance_discovery=False,
                http_client=http,
            )
            # The resource keeps its own slash at the end: Entra ID takes off exactly "/.default" for the audience.
            told = asking.acquire_token_for_client([f"{resource}/.default"])
        except httpx2.HTTPError as error:
            raise AzureError(f"{login} does not answer ({error}); is it reachable from this node?") from None
        except (ValueError, KeyError, TypeError, RuntimeError, MsalServiceError) as error:
            raise _refused(login, http.last, {"error_description": str(error)}) from None
    if "access_token" not in told:
        raise _refused(login, http.last, told)
    return _granted(login, told)


def _granted(login: str, told: Mapping[str, Any]) -> Granted:
    try:
        return Granted(str(told["access_token"]), int(told["expires_in"]))
    except (KeyError, ValueError, TypeError):
        raise AzureError(f"{login} answered with something that is no token; is that Entra ID?") from None


def _refused(login: str, answer: httpx2.Response | None, told: Mapping[str, Any]) -> AzureError:
    """Make an error of an answer: Entra ID's own words on one line. An unknown status counts as a refusal."""
    status = answer.status_code if answer is not None else 0
    body = _body(answer)
    words = body.get("error_description") or told.get("error_description") or told.get("error") or "no reason given"
    pause = None
    if answer is not None and (status == _THROTTLED or status >= _SERVER_ERROR):
        pause = retry_after(answer)
    if status == httpx2.codes.OK:  # said yes and meant nothing that can be read
        return AzureError(f"{login} answered with something that is no token; is that Entra ID?")
    return AzureError(
        " ".join(str(words)[:_TOLD_CHARACTERS].split()),
        status=status,
        code=str(body.get("error", ""))[:_TOLD_CHARACTERS],
        retry_after_seconds=pause,
    )


def _body(answer: httpx2.Response | None) -> Mapping[str, Any]:
    try:
        body = answer.json() if answer is not None else None
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _opened(certificate: Certificate) -> dict[str, str]:
    """Unlock a PKCS#12 archive, as msal wants it: PEM. With the certificate goes the right to subject-name trust."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  # as msal
    from cryptography.hazmat.primitives.serialization import pkcs12  # noqa: PLC0415  # as msal

    try:
        key, found, _ = pkcs12.load_key_and_certificates(certificate.archive, certificate.password or None)
    except ValueError:
        raise ConfigurationError("it is no PKCS#12 archive, or its password is another one") from None
    if key is None or found is None:
        raise ConfigurationError("the PKCS#12 archive must hold a certificate and its private key")
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {"private_key": private.decode(), "public_certificate": found.public_bytes(pem).decode()}
