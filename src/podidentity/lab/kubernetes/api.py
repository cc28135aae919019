"""The HTTP API: a path and a method to one operation, after asking who may.

What is not here is refused with a sentence that names `--kubernetes=real`.
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.kubernetes import discovery, places
from podidentity.lab.kubernetes.auth import Access, Authority, User, named_user
from podidentity.lab.kubernetes.kinds import Kinds
from podidentity.lab.kubernetes.places import Place
from podidentity.lab.kubernetes.reading import Reading
from podidentity.lab.kubernetes.statuses import ApiError
from podidentity.lab.kubernetes.storage import Storage
from podidentity.lab.kubernetes.subresources import Logs, Subresources
from podidentity.lab.kubernetes.writing import Writing, read_body

HEALTH_PATHS = frozenset({"healthz", "readyz", "livez"})
KEYS_PATH = "openid/v1/jwks"
REVIEWS = "apis/authorization.k8s.io/v1"
REVIEW_PATH = f"{REVIEWS}/selfsubjectaccessreviews"
OTHERS_REVIEW_PATH = f"{REVIEWS}/subjectaccessreviews"
PLAIN_PARTS = frozenset({"", "status"})


class Api:
    """Answers requests; constructed by `kubernetes`."""

    def __init__(
        self, storage: Storage, kinds: Kinds, authority: Authority, logs: Logs, clock: Callable[[], float]
    ) -> None:
        self._kinds = kinds
        self._authority = authority
        self._subresources = Subresources(storage, authority, logs)
        reading, writing = Reading(storage, clock), Writing(storage, kinds)
        self._operations: dict[str, Callable[[Request, Place], Awaitable[Response]]] = {
            "get": reading.get,
            "list": reading.list,
            "watch": reading.watch,
            "create": writing.create,
            "update": writing.update,
            "patch": writing.patch,
            "delete": writing.delete,
            "deletecollection": writing.delete_collection,
        }

    async def serve(self, request: Request) -> Response:
        """Answer one request; refusals are Status objects."""
        try:
            return await self._serve(request)
        except ApiError as error:
            return JSONResponse(error.body(), error.status)

    async def _serve(self, request: Request) -> Response:
        path = request.url.path.strip("/")
        if path in HEALTH_PATHS:
            return Response("ok")
        user = self._authority.user(request.headers.get("authorization", ""))
        if path == KEYS_PATH:
            return JSONResponse(self._authority.keys())
        if path in {REVIEW_PATH, OTHERS_REVIEW_PATH}:
            return await self._review(request, user, of_others=path == OTHERS_REVIEW_PATH)
        found = discovery.document(self._kinds, path)
        if found is not None:
            return JSONResponse(found)
        place = places.find(self._kinds, path)
        verb = _verb(request, place)
        resource = f"{place.kind.plural}/{place.subresource}" if place.subresource else place.kind.plural
        self._authority.require(user, Access(verb, place.kind.group, resource, place.namespace or "", place.name))
        if place.subresource not in PLAIN_PARTS:
            return await self._subresources.serve(request, place)
        return await self._operations[verb](request, place)

    async def _review(self, request: Request, user: User, *, of_others: bool) -> Response:
        review = await read_body(request)
        if of_others:
            access = Access("create", "authorization.k8s.io", "subjectaccessreviews", "", "")
            self._authority.require(user, access)
            user = named_user(review["spec"].get("user", ""))
        asked = review["spec"].get("resourceAttributes") or {}
        resource = "/".join(filter(None, (asked.get("resource", ""), asked.get("subresource", ""))))
        access = Access(
            asked.get("verb", ""), asked.get("group", ""), resource, asked.get("namespace", ""), asked.get("name", "")
        )
        try:
            self._authority.require(user, access)
        except ApiError as error:
            return JSONResponse({**review, "status": {"allowed": False, "reason": str(error)}}, 201)
        return JSONResponse({**review, "status": {"allowed": True}}, 201)


def _verb(request: Request, place: Place) -> str:
    match request.method:
        case "GET" if place.name:
            return "get"
        case "GET":
            return "watch" if request.query_params.get("watch") in {"true", "1"} else "list"
        case "POST":
            return "create"
        case "PUT":
            return "update"
        case "PATCH":
            return "patch"
        case "DELETE":
            return "delete" if place.name else "deletecollection"
        case other:
            raise ApiError(405, f"the server does not allow the method {other}")
