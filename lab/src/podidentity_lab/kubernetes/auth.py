"""Who asks, and what they may do: bearer tokens, and RBAC for service accounts.

The admin's token may do everything (`system:masters`); a service account what its roles and bindings say.
"""

import secrets
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from podidentity_lab.kubernetes.signing import SigningKeys
from podidentity_lab.kubernetes.statuses import ApiError
from podidentity_lab.kubernetes.storage import Storage

ISSUER = "https://kubernetes.default.svc"
LIFETIME_SECONDS = 3600
_RBAC = "rbac.authorization.k8s.io"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class User:
    """Who asks. `name` is Kubernetes' own for it; a service account also has its namespace and account name."""

    name: str
    namespace: str = ""
    account: str = ""
    is_admin: bool = False
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Access:
    """What a request wants to do: `verb` on `resource`, which may name a subresource (`pods/log`), in an API group."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str


def named_user(name: str, groups: Sequence[str] = ()) -> User:
    """Return the user that a SubjectAccessReview names; it is in no group that is not given."""
    start, _, account = name.rpartition(":")
    prefix, _, namespace = start.rpartition(":")
    if prefix != "system:serviceaccount":
        return User(name, groups=tuple(groups))
    return User(name, namespace, account, groups=tuple(groups))


class Authority:
    """Issues and checks tokens, and decides with RBAC who may do what. `clock` gives Unix seconds."""

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self.admin_token = secrets.token_urlsafe(24)
        self._storage = storage
        self._clock = clock
        self.keys = SigningKeys()
        self.issuer = ISSUER
        self.now = clock

    def issue(
        self,
        namespace: str,
        account: str,
        pod: Json | None = None,
        audiences: Sequence[str] = (),
        lifetime_seconds: int = LIFETIME_SECONDS,
    ) -> str:
        """Return a service account's token, bound to `pod` (name, uid) if any; for this API unless for `audiences`."""
        now = int(self._clock())
        claims = {
            "iss": self.issuer,
            "aud": list(audiences) or [self.issuer],
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "iat": now,
            "nbf": now,
            "exp": now + lifetime_seconds,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": self._bound(namespace, account, pod),
        }
        return self.keys.sign(claims)

    def configuration(self, keys_address: str) -> Json:
        """Return the issuer's openid-configuration, as kube-apiserver serves it."""
        return {
            "issuer": self.issuer,
            "jwks_uri": keys_address,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def user(self, authorization: str) -> User:
        """Return the user whose token is in an Authorization header. Raises ApiError 401."""
        _, _, token = authorization.partition(" ")
        if secrets.compare_digest(token.encode(), self.admin_token.encode()):
            return User("kubernetes-admin", is_admin=True)
        claims = self.review(token, [self.issuer])
        if isinstance(claims, str):
            raise ApiError(401, "Unauthorized")
        bound = claims["kubernetes.io"]
        namespace = bound["namespace"]
        groups = ("system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{namespace}")
        return User(claims["sub"], namespace, bound["serviceaccount"]["name"], groups=groups)

    def review(self, token: str, audiences: Sequence[str]) -> Json | str:
        """Return the claims of a token that is good for one of `audiences` now, or what is wrong with it."""
        claims = self.keys.verify(token)
        if claims is None:
            return "no key of this cluster signed it"
        if not set(audiences) & set(claims["aud"]):
            return f"token audiences {claims['aud']} is invalid for the target audiences {list(audiences)}"
        if claims["exp"] <= self._clock():
            return "service account token has expired"
        bound = claims["kubernetes.io"]
        for kind, resource in (("serviceaccount", "serviceaccounts"), ("pod", "pods")):
            thing = bound.get(kind)
            if thing and self._uid(resource, bound["namespace"], thing["name"]) != thing.get("uid"):
                return f"the {kind} {thing['name']} that the token is bound to is gone"
        return claims

    def _bound(self, namespace: str, account: str, pod: Json | None) -> Json:
        bound: Json = {"namespace": namespace, "serviceaccount": {"name": account}}
        uid = self._uid("serviceaccounts", namespace, account)
        if uid:
            bound["serviceaccount"]["uid"] = uid
        if not pod:
            return bound
        bound["pod"] = pod
        obj = self._find("pods", namespace, pod["name"]) or {}
        node = (obj.get("spec") or {}).get("nodeName")
        if node:
            uid = self._uid("nodes", None, node)
            bound["node"] = {"name": node, "uid": uid} if uid else {"name": node}
        return bound

    def _uid(self, resource: str, namespace: str | None, name: str) -> str | None:
        obj = self._find(resource, namespace, name)
        return obj["metadata"]["uid"] if obj else None

    def _find(self, resource: str, namespace: str | None, name: str) -> Json | None:
        try:
            return self._storage.get(resource, namespace, name)
        except ApiError:
            return None

    def require(self, user: User, access: Access) -> None:
        """Raise ApiError 403, in Kubernetes' words, unless a rule allows `access`."""
        if user.is_admin or any(_allows(rule, access) for rule in self._rules(user, access.namespace)):
            return
        place = f' in the namespace "{access.namespace}"' if access.namespace else " at the cluster scope"
        name = f' "{access.name}"' if access.name else ""
        subject = f"{access.resource.split('/')[0]}{'.' if access.group else ''}{access.group}{name} is forbidden"
        request = f'{access.verb} resource "{access.resource}" in API group "{access.group}"'
        raise ApiError(403, f'{subject}: User "{user.name}" cannot {request}{place}')

    def _rules(self, user: User, namespace: str) -> Iterator[Json]:
        bindings: list[tuple[Json, str | None]] = [
            (binding, None) for binding in self._storage.list(f"clusterrolebindings.{_RBAC}")
        ]
        bindings += (
            [(binding, namespace) for binding in self._storage.list(f"rolebindings.{_RBAC}", namespace)]
            if namespace
            else []
        )
        for binding, scope in bindings:
            if any(_is(subject, user) for subject in binding.get("subjects") or ()):
                yield from self._role(binding["roleRef"], scope)

    def _role(self, reference: Json, namespace: str | None) -> list[Json]:
        plural = "clusterroles" if reference["kind"] == "ClusterRole" else "roles"
        try:
            role = self._storage.get(f"{plural}.{_RBAC}", namespace if plural == "roles" else None, reference["name"])
        except ApiError:
            return []
        return role.get("rules") or []


def _is(subject: Json, user: User) -> bool:
    if subject.get("kind") == "Group":
        return subject.get("name") in user.groups
    if subject.get("kind") == "User":
        return subject.get("name") == user.name
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


def _has(values: list[str] | None, value: str) -> bool:
    return values is not None and ("*" in values or value in values)
