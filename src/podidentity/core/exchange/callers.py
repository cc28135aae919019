"""Who sent a request: what can be refused before the API server is asked, and what its TokenReview proves.

Claims of a service account token: kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin. What
TokenReview answers: kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from podidentity.core.exchange.requests import Refusal
from podidentity.core.model.federation import EXCHANGE_AUDIENCE, PROXY_AUDIENCE
from podidentity.core.model.service_account_tokens import read_part

AUDIENCE = PROXY_AUDIENCE
"""The audience of tokens for AKS's token proxy, which the SDKs' users already have in their pods."""
_SERVICE_ACCOUNT = "system:serviceaccount"
_EXTRA = "authentication.kubernetes.io/"
_SIGNATURES = frozenset({"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"})
"""Kubernetes signs with RS256 and ES256 to ES512; a key management service may use others. Never none, never HMAC."""


class Caller(NamedTuple):
    """A service account that the API server vouches for, and the pod that its token is bound to, if any.

    `extra` is what a SubjectAccessReview is given beside user and groups.
    """

    namespace: str
    service_account: str
    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()
    pod: str = ""
    pod_uid: str = ""
    node: str = ""

    @property
    def key(self) -> str:
        """The service account as `namespace/name`."""
        return f"{self.namespace}/{self.service_account}"


def refuse_early(assertion: str, audience: str, now: float) -> Refusal | None:
    """Return why a token cannot be good, read without its signature; None when the API server must be asked.

    This only spares the API server: what it lets through is not believed. `now` is in seconds since 1970.
    """
    header, claims = (read_part(text) for text in assertion.split(".")[:2])
    if header is None or claims is None:
        return _unauthorized("the client assertion cannot be read; send the pod's service account token as it is")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in _SIGNATURES:
        return _unauthorized("the client assertion is not signed as Kubernetes signs; send a service account token")
    audiences = claims.get("aud")
    if audience not in (audiences if isinstance(audiences, list) else [audiences]):
        return _unauthorized(
            f"the service account token is not for audience {audience}; project one with that audience into the pod"
        )
    expiry = claims.get("exp")
    if not isinstance(expiry, int | float) or not expiry > now:  # NaN is no number either
        return _unauthorized("the service account token has expired; read its file again, the kubelet renews it")
    return None


def caller_of(status: Mapping[str, Any], audience: str, *, unbound: bool = False) -> Caller | Refusal:
    """Return who a TokenReview's `status` says the caller is, or why it is nobody.

    `unbound` accepts tokens that are bound to no pod, such as those of `kubectl create token`: they stay good when pods
    are deleted.
    """
    user = status.get("user")
    if status.get("authenticated") is not True or not isinstance(user, Mapping):
        return _unauthorized("the cluster does not accept the service account token; is the pod still there?")
    if audience not in (status.get("audiences") or ()):
        return _unauthorized(f"the service account token is not for audience {audience}")
    username = str(user.get("username", ""))
    prefix, _, name = username.rpartition(":")
    kind, _, namespace = prefix.rpartition(":")
    if kind != _SERVICE_ACCOUNT or not namespace or not name:
        return _unauthorized(f"{username} is no service account; identities are given to service accounts")
    extra = _extra(user.get("extra"))
    values = {key.removeprefix(_EXTRA): texts[0] for key, texts in extra if len(texts) == 1}
    pod, pod_uid = values.get("pod-name", ""), values.get("pod-uid", "")
    if not (pod and pod_uid) and not unbound:
        return _unauthorized(
            f"the token of service account {namespace}/{name} is bound to no pod; use the one that is projected into it"
        )
    groups = tuple(str(group) for group in user.get("groups") or ())
    return Caller(
        namespace, name, username, str(user.get("uid", "")), groups, extra, pod, pod_uid, values.get("node-name", "")
    )


def credential_of(assertion: str) -> str | None:
    """Return the words that tell which federated credential a service account token needs; None when it is none.

    Its audience is the token's own: other clouds have others than the public one.
    """
    claims = read_part(assertion.split(".")[1]) if assertion.count(".") == len("..") else None
    if claims is None or not isinstance(claims.get("iss"), str) or not isinstance(claims.get("sub"), str):
        return None
    audiences = claims.get("aud")
    audience = audiences[0] if isinstance(audiences, list) and audiences else audiences or EXCHANGE_AUDIENCE
    return f"issuer {claims['iss']}, subject {claims['sub']}, audience {audience}"


def _extra(content: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not isinstance(content, Mapping):
        return ()
    return tuple(
        (str(key), tuple(map(str, texts)))
        for key, texts in content.items()
        if isinstance(texts, Sequence) and not isinstance(texts, str)
    )


def _unauthorized(message: str) -> Refusal:
    return Refusal(401, "invalid_client", message)
