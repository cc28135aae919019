"""Blob storage as `https://ACCOUNT.blob.core.windows.net` serves it: containers and block blobs.

Accounts are made through ARM (`arm_storage`). `blob_rules` decides, `blob_rights` says who may, `blob_xml` renders.
"""

import secrets
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from podidentity_lab.azure import answers, blob_rights, blob_rules, blob_xml
from podidentity_lab.azure.blob_objects import Blobs, metadata_of, new_etag
from podidentity_lab.azure.blob_rules import BlobError
from podidentity_lab.azure.entra import Entra
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.state import Container, Json, State

SUFFIX = blob_rights.SUFFIX


class BlobStorage:
    """All accounts; the host name of a request says which one."""

    def __init__(self, state: State, entra: Entra, faults: Faults, clock: Callable[[], float]) -> None:
        self._state = state
        self._faults = faults
        self._clock = clock
        self._rights = blob_rights.Rights(state, entra)
        self._blobs = Blobs(clock)

    async def serve(self, request: Request) -> Response:
        """Answer one request, with the headers that every answer has."""
        try:
            response = await self._serve(request)
        except answers.Refusal as refusal:
            response = refusal.response
        except BlobError as error:
            response = answers.storage(error.status, error.code, error.message).response
        except answers.MALFORMED:
            response = answers.storage(400, "InvalidInput", "One of the request inputs is not valid.").response
        response.headers["x-ms-request-id"] = secrets.token_hex(16)
        response.headers["x-ms-version"] = request.headers.get("x-ms-version", "2021-12-02")
        if client_request_id := request.headers.get("x-ms-client-request-id"):
            response.headers["x-ms-client-request-id"] = client_request_id
        return response

    async def _serve(self, request: Request) -> Response:
        account = self._account(request.headers["host"].split(":")[0])
        caller = self._rights.caller(request, account)
        request.state.client_id, request.state.name = caller.client_id, caller.name
        if self._faults.blob_statuses:
            raise answers.storage_asked_for(self._faults.blob_statuses.pop(0), self._faults.headers())
        container_name, _, blob_name = str(request.scope["path"]).lstrip("/").partition("/")
        query = dict(request.query_params)
        right = blob_rights.right_of(request.method, query, blob_name)
        self._rights.require(account, caller, right, container_name)
        if not container_name:
            return self._list_containers(request, account, query)
        blob_rules.check_container_name(container_name)
        if not blob_name:
            return self._container(request, account, container_name, query)
        container = self._find(account, container_name)
        return await self._blobs.serve(request, container, blob_name, query)

    def _account(self, host: str) -> Json:
        name = host.lower().removesuffix(SUFFIX)
        account = next((item for item in self._state.accounts.values() if item["name"] == name), None)
        if account is None:
            raise answers.storage(404, "ResourceNotFound", f"There is no storage account '{name}' in the lab.")
        return account

    def _find(self, account: Json, name: str) -> Container:
        container = self._state.containers.get(f"{account['name']}/{name}")
        if container is None:
            raise BlobError(404, "ContainerNotFound", "The specified container does not exist.")
        return container

    def _list_containers(self, request: Request, account: Json, query: dict[str, str]) -> Response:
        if request.method != "GET" or query.get("comp") != "list" or "restype" in query:
            raise _unsupported(request)
        start = f"{account['name']}/"
        containers = {
            key.removeprefix(start): item for key, item in self._state.containers.items() if key.startswith(start)
        }
        page = _page(list(containers), query)
        return _xml(blob_xml.containers(_endpoint(account), containers, page, query))

    def _container(self, request: Request, account: Json, name: str, query: dict[str, str]) -> Response:
        key = f"{account['name']}/{name}"
        match request.method, query.get("restype"), query.get("comp", ""):
            case "PUT", "container", "":
                if key in self._state.containers:
                    raise BlobError(409, "ContainerAlreadyExists", "The specified container already exists.")
                container = new_container(self._clock(), metadata_of(request))
                self._state.containers[key] = container
                return Response(status_code=201, headers=_container_headers(container))
            case "DELETE", "container", "":
                self._find(account, name)
                del self._state.containers[key]
                return Response(status_code=202)
            case (("GET" | "HEAD"), "container", ("" | "metadata")):
                container = self._find(account, name)
                metadata = {f"x-ms-meta-{title}": value for title, value in container.metadata.items()}
                return Response(headers={**_container_headers(container), **metadata})
            case "GET", "container", "list":
                container = self._find(account, name)
                page = _page(list(container.blobs), query)
                return _xml(blob_xml.blobs(_endpoint(account), name, container, page, query))
        raise _unsupported(request)


def new_container(now: float, metadata: dict[str, str]) -> Container:
    """Return a container without blobs."""
    return Container(new_etag(), int(now), metadata)


def _page(names: list[str], query: dict[str, str]) -> blob_rules.Page:
    selection = blob_rules.Selection(*(query.get(name, "") for name in ("prefix", "delimiter", "marker")))
    return blob_rules.page(names, selection, blob_rules.page_size(query.get("maxresults", "")))


def _container_headers(container: Container) -> dict[str, str]:
    states = {"x-ms-lease-status": "unlocked", "x-ms-lease-state": "available"}
    return {"ETag": container.etag, "Last-Modified": blob_xml.http_date(container.modified_at), **states}


def _endpoint(account: Json) -> str:
    return f"https://{account['name']}{SUFFIX}/"


def _xml(body: bytes) -> Response:
    return Response(body, media_type="application/xml")


def _unsupported(request: Request) -> BlobError:
    operation = f"{request.method} {request.url.path}?{request.url.query}"
    return BlobError(400, "InvalidQueryParameterValue", f"The lab's blob storage does not have '{operation}'.")
