"""What other programs ask the API about a token or a user: TokenReview and SubjectAccessReview."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.kubernetes.auth import Access, Authority, User, named_user
from podidentity_lab.kubernetes.statuses import ApiError
from podidentity_lab.kubernetes.writing import read_body

Json = dict[str, Any]
_AUTHORIZATION = "apis/authorization.k8s.io/v1"
_SELF = f"{_AUTHORIZATION}/selfsubjectaccessreviews"
_TOKENS = "apis/authentication.k8s.io/v1/tokenreviews"
PATHS = {
    _SELF: None,
    f"{_AUTHORIZATION}/subjectaccessreviews": Access("create", "authorization.k8s.io", "subjectaccessreviews", "", ""),
    _TOKENS: Access("create", "authentication.k8s.io", "tokenreviews", "", ""),
}
"""Each path, and what its caller must be allowed."""


async def serve(request: Request, path: str, user: User, authority: Authority) -> Response:
    """Answer one review. Raises ApiError."""
    access = PATHS[path]
    if access is not None:
        authority.require(user, access)
    review = await read_body(request)
    spec = review.get("spec") or {}
    if path == _TOKENS:
        return JSONResponse({**review, "status": _token_status(spec, authority)}, 201)
    if path != _SELF:
        user = named_user(spec.get("user", ""), spec.get("groups") or ())
    return JSONResponse({**review, "status": _access_status(spec, user, authority)}, 201)


def _access_status(spec: Json, user: User, authority: Authority) -> Json:
    attributes = spec.get("resourceAttributes") or {}
    resource = "/".join(filter(None, (attributes.get("resource", ""), attributes.get("subresource", ""))))
    access = Access(
        attributes.get("verb", ""),
        attributes.get("group", ""),
        resource,
        attributes.get("namespace", ""),
        attributes.get("name", ""),
    )
    try:
        authority.require(user, access)
    except ApiError as error:
        return {"allowed": False, "reason": str(error)}
    return {"allowed": True}


def _token_status(spec: Json, authority: Authority) -> Json:
    audiences = spec.get("audiences") or [authority.issuer]
    claims = authority.review(str(spec.get("token", "")), audiences)
    if isinstance(claims, str):
        return {"user": {}, "error": f"[invalid bearer token, {claims}]"}
    bound = claims["kubernetes.io"]
    user = {
        "username": claims["sub"],
        "uid": bound["serviceaccount"].get("uid", ""),
        "groups": ["system:serviceaccounts", f"system:serviceaccounts:{bound['namespace']}", "system:authenticated"],
        "extra": _extra(claims),
    }
    common = [audience for audience in audiences if audience in claims["aud"]]
    return {"authenticated": True, "user": user, "audiences": common}


def _extra(claims: Json) -> dict[str, list[str]]:
    values = {"credential-id": f"JTI={claims['jti']}"}
    for kind in ("pod", "node"):
        thing = claims["kubernetes.io"].get(kind) or {}
        values |= {f"{kind}-{name}": thing[name] for name in ("name", "uid") if name in thing}
    return {f"authentication.kubernetes.io/{name}": [value] for name, value in values.items()}
