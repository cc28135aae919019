"""Who asks, and what they may do: bearer tokens, and RBAC for service accounts.

The admin's token may do everything (`system:masters`); a service account what its roles and bindings say.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from podidentity.lab.kubernetes.statuses import ApiError
from podidentity.lab.kubernetes.storage import Storage

ISSUER = "https://kubernetes.default.svc"
LIFETIME_SECONDS = 3600
_RBAC = "rbac.authorization.k8s.io"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class User:
    """Who asks; `everything` for the admin."""

    name: str
    namespace: str = ""
    account: str = ""
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """What is asked for; `resource` with its subresource, `pods/log`."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str


def named_user(name: str) -> User:
    """The user of a name, as a SubjectAccessReview gives it: a service account, or somebody without rights."""
    start, _, account = name.rpartition(":")
    prefix, _, namespace = start.rpartition(":")
    if prefix != "system:serviceaccount":
        return User(name)
    return User(name, namespace, account)


class Authority:
    """Issues and checks tokens."""

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self.admin_token = secrets.token_urlsafe(24)
        self._storage = storage
        self._clock = clock
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def issue(self, namespace: str, account: str, pod: Json | None = None, audiences: Sequence[str] = ()) -> str:
        """A service account's token, bound to a pod when one is given; for this API unless for other audiences."""
        now = int(self._clock())
        bound: Json = {"namespace": namespace, "serviceaccount": {"name": account}}
        if pod:
            bound["pod"] = pod
        claims = {
            "iss": ISSUER,
            "aud": list(audiences) or [ISSUER],
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "iat": now,
            "nbf": now,
            "exp": now + LIFETIME_SECONDS,
            "kubernetes.io": bound,
        }
        return jwt.encode(claims, self._key, "RS256", headers={"kid": "lab"})

    def keys(self) -> Json:
        """What verifies the tokens, as the API publishes it at /openid/v1/jwks."""
        public: Json = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key()))
        return {"keys": [{**public, "use": "sig", "alg": "RS256", "kid": "lab"}]}

    def user(self, authorization: str) -> User:
        """Who a request's Authorization header names. Raises ApiError 401."""
        _, _, token = authorization.partition(" ")
        if secrets.compare_digest(token.encode(), self.admin_token.encode()):
            return User("kubernetes-admin", everything=True)
        options: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
        try:
            claims = jwt.decode(token, self._key.public_key(), ["RS256"], audience=ISSUER, options=options)
        except jwt.InvalidTokenError:
            raise ApiError(401, "Unauthorized") from None
        if claims["exp"] <= self._clock():
            raise ApiError(401, "Unauthorized")
        bound = claims["kubernetes.io"]
        return User(claims["sub"], bound["namespace"], bound["serviceaccount"]["name"])

    def require(self, user: User, access: Access) -> None:
        """Refuse with 403, in Kubernetes' words, what no rule allows."""
        if user.everything or any(_allows(rule, access) for rule in self._rules(user, access.namespace)):
            return
        where = f' in the namespace "{access.namespace}"' if access.namespace else " at the cluster scope"
        named = f' "{access.name}"' if access.name else ""
        what = f"{access.resource.split('/')[0]}{'.' if access.group else ''}{access.group}{named} is forbidden"
        asked = f'{access.verb} resource "{access.resource}" in API group "{access.group}"'
        raise ApiError(403, f'{what}: User "{user.name}" cannot {asked}{where}')

    def _rules(self, user: User, namespace: str) -> Iterator[Json]:
        bindings: list[tuple[Json, str | None]] = [
            (one, None) for one in self._storage.list(f"clusterrolebindings.{_RBAC}")
        ]
        bindings += (
            [(one, namespace) for one in self._storage.list(f"rolebindings.{_RBAC}", namespace)] if namespace else []
        )
        for binding, of in bindings:
            if any(_is(subject, user) for subject in binding.get("subjects") or ()):
                yield from self._role(binding["roleRef"], of)

    def _role(self, reference: Json, namespace: str | None) -> list[Json]:
        plural = "clusterroles" if reference["kind"] == "ClusterRole" else "roles"
        try:
            role = self._storage.get(f"{plural}.{_RBAC}", namespace if plural == "roles" else None, reference["name"])
        except ApiError:
            return []
        return role.get("rules") or []


def _is(subject: Json, user: User) -> bool:
    if subject.get("kind") == "Group":
        return subject.get("name") in {
            "system:authenticated",
            "system:serviceaccounts",
            f"system:serviceaccounts:{user.namespace}",
        }
    return (subject.get("kind"), subject.get("namespace"), subject.get("name")) == (
        "ServiceAccount",
        user.namespace,
        user.account,
    )


def _allows(rule: Json, access: Access) -> bool:
    return (
        _has(rule.get("apiGroups"), access.group)
        and _has(rule.get("resources"), access.resource)
        and _has(rule.get("verbs"), access.verb)
        and (not rule.get("resourceNames") or access.name in rule["resourceNames"])
    )


def _has(listed: list[str] | None, wanted: str) -> bool:
    return listed is not None and ("*" in listed or wanted in listed)
