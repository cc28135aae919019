"""The HTTP API: maps a path and a method to one operation, and checks first whether the caller may do it.

What the lab does not have is refused with a sentence that names `--kubernetes=real`.
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.kubernetes import discovery, places, reviews
from podidentity_lab.kubernetes.auth import Access, Authority
from podidentity_lab.kubernetes.kinds import Kinds
from podidentity_lab.kubernetes.places import Place
from podidentity_lab.kubernetes.reading import Reading
from podidentity_lab.kubernetes.statuses import ApiError
from podidentity_lab.kubernetes.storage import Storage
from podidentity_lab.kubernetes.subresources import Logs, Subresources
from podidentity_lab.kubernetes.writing import Writing

HEALTH_PATHS = frozenset({"healthz", "readyz", "livez"})
KEYS_PATH = "openid/v1/jwks"
CONFIGURATION_PATH = ".well-known/openid-configuration"
PLAIN_PARTS = frozenset({"", "status"})


class Api:
    """Answers requests."""

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
            return JSONResponse(self._authority.keys.key_set())
        if path == CONFIGURATION_PATH:
            return JSONResponse(self._authority.configuration(f"https://{request.headers['host']}/{KEYS_PATH}"))
        if path in reviews.PATHS:
            return await reviews.serve(request, path, user, self._authority)
        document = discovery.document(self._kinds, path)
        if document is not None:
            return JSONResponse(document)
        place = places.find(self._kinds, path)
        verb = _verb(request, place)
        resource = f"{place.kind.plural}/{place.subresource}" if place.subresource else place.kind.plural
        self._authority.require(user, Access(verb, place.kind.group, resource, place.namespace or "", place.name))
        if place.subresource not in PLAIN_PARTS:
            return await self._subresources.serve(request, place)
        return await self._operations[verb](request, place)


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
