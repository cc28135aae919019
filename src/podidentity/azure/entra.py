"""Tokens of service principals from Entra ID, with a secret or with a certificate (PKCS#12), through msal.

msal is synchronous and heavy: it is imported when the first such token is asked for, and runs in a thread. It makes two
calls for a token: GET of the tenant's openid-configuration, then POST to the token endpoint which that names; the
authorities of other clouds are never asked whether this one is known (`instance_discovery=False`). Nothing is
remembered here. Proxies and certificate authorities come from the environment (HTTPS_PROXY, SSL_CERT_FILE).
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx2

from podidentity.azure.certificates import Certificate, Signer
from podidentity.errors import AzureError
from podidentity.http import access_token, json_object, retry_after_seconds

_TIMEOUT = httpx2.Timeout(8.0, connect=3.0)  # a thread cannot be cancelled: two calls must end within a pod's grace
_MESSAGE_CHARACTERS = 600  # Entra ID's own sentences have up to 500, with the IDs that its support asks for
_SERVER_ERROR = 500
_THROTTLED = 429


class Application(NamedTuple):
    """A service principal: the cloud's login URL (no slash at the end), tenant, client ID, secret or certificate."""

    login: str
    tenant_id: str
    client_id: str
    credential: str | Certificate

    def __repr__(self) -> str:
        return f"Application({self.login}, {self.tenant_id}, ...)"


class GrantedToken(NamedTuple):
    """A token, and for how many seconds it is valid. Its text shows no token."""

    access_token: str
    expires_in_seconds: int

    def __repr__(self) -> str:
        return f"GrantedToken(..., {self.expires_in_seconds})"


class Entra:
    """Entra ID of every cloud. Its calls run in `threads`, or in the event loop's own when that is None.

    The loop's threads are few, and NMI also runs `nft` and `ip` in them: calls that hang must not delay those.
    """

    def __init__(self, threads: ThreadPoolExecutor | None = None) -> None:
        self._threads = threads
        self._signer = Signer()

    async def token(self, application: Application, resource: str) -> GrantedToken:
        """Ask for a token. Raises `AzureError` with Entra ID's words, `ConfigurationError` for a bad certificate."""
        asking = asyncio.get_running_loop().run_in_executor(self._threads, _ask, application, resource, self._signer)
        return await asking


class _Http:
    """The HTTP client for msal. It keeps the last answer: msal drops what Entra ID says of an unknown tenant."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client
        self.last: httpx2.Response | None = None

    def get(self, url: str, **options: Any) -> httpx2.Response:
        return self._keep(self._client.get(url, **options))

    def post(self, url: str, data: Mapping[str, str | bytes], **options: Any) -> httpx2.Response:
        # Assertions are bytes, of which this client would send the repr.
        form = {name: value.decode() if isinstance(value, bytes) else value for name, value in data.items()}
        return self._keep(self._client.post(url, data=form, **options))

    def close(self) -> None:
        self._client.close()

    def _keep(self, answer: httpx2.Response) -> httpx2.Response:
        self.last = answer
        return answer


def _ask(application: Application, resource: str, signer: Signer) -> GrantedToken:
    """Make the two calls for a token; blocks. Raises as `Entra.token`."""
    import msal  # noqa: PLC0415  # 6 MiB that a node with managed identities alone never needs
    from msal.exceptions import MsalServiceError  # noqa: PLC0415  # likewise

    login, tenant, client_id, credential = application

    def assertion() -> str:
        assert isinstance(credential, Certificate)  # noqa: S101  # for mypy
        endpoint = asking.authority.token_endpoint
        return signer.sign(credential, client_id, endpoint, adfs=asking.authority.is_adfs)

    proof = credential if isinstance(credential, str) else {"client_assertion": assertion}
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
            result = asking.acquire_token_for_client([f"{resource}/.default"])
        except httpx2.HTTPError as error:
            raise AzureError(f"{login} does not answer ({error}); check that it is reachable from here") from None
        except (ValueError, KeyError, TypeError, RuntimeError, MsalServiceError) as error:
            raise _refusal(login, http.last, {"error_description": str(error)}) from None
    if "access_token" not in result:
        raise _refusal(login, http.last, result)
    return _token_of(login, result)


def _token_of(login: str, result: Mapping[str, Any]) -> GrantedToken:
    try:
        return GrantedToken(access_token(result), int(result["expires_in"]))
    except (KeyError, ValueError, TypeError):
        raise AzureError(f"{login} answered with something that is no token; check its address") from None


def _refusal(login: str, answer: httpx2.Response | None, result: Mapping[str, Any]) -> AzureError:
    """Return the error for an answer: Entra ID's own words on one line. An unknown status counts as a refusal."""
    status = answer.status_code if answer is not None else 0
    body = json_object(answer.content) if answer is not None else {}
    words = body.get("error_description") or result.get("error_description") or result.get("error") or "no reason given"
    pause = None
    if answer is not None and (status == _THROTTLED or status >= _SERVER_ERROR):
        pause = retry_after_seconds(answer)
    if status == httpx2.codes.OK:  # said yes and meant nothing that can be read
        return AzureError(f"{login} answered with something that is no token; check its address")
    return AzureError(
        " ".join(str(words)[:_MESSAGE_CHARACTERS].split()),
        status=status,
        code=str(body.get("error", ""))[:_MESSAGE_CHARACTERS],
        retry_after_seconds=pause,
    )
