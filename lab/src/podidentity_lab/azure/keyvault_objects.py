"""What secrets, keys and certificates of a vault have in common: names, versions, deletion, recovery, purging.

`Shelf` decides and changes, `Objects` reads requests and renders answers. A kind adds its own writes and documents.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers
from podidentity_lab.azure.state import Json

RETENTION_SECONDS = 90 * 86_400
_NAME = re.compile("[0-9A-Za-z-]{1,127}")  # learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates


class Version(Protocol):
    """What one version of every kind has. Times are Unix seconds; 0: no such time."""

    version: str
    created_at: int
    tags: Json
    enabled: bool
    not_before: int
    expires: int
    managed: bool


V = TypeVar("V", bound=Version)


class Shelf(Generic[V]):
    """The objects of one kind in all vaults; `noun` is how refusals call them: secret, key or certificate."""

    def __init__(self, noun: str, versions: dict[str, list[V]], deletion_times: dict[str, int]) -> None:
        self.noun = noun
        self._versions = versions
        self._deletion_times = deletion_times

    def names(self, vault: Json) -> list[str]:
        """Return the names of the objects that are not deleted, in lower case."""
        return [name for name in _inside(self._versions, vault) if self.versions(vault, name)]

    def deleted_names(self, vault: Json) -> list[str]:
        """Return the names of the deleted objects, in lower case."""
        return _inside(self._deletion_times, vault)

    def versions(self, vault: Json, name: str) -> list[V]:
        """Return the versions of an object, oldest first; none of a deleted one."""
        key = _key(vault, name)
        return [] if key in self._deletion_times else self._versions.get(key, [])

    def find(self, vault: Json, name: str, version: str = "") -> V:
        """Return one version, or the newest. Refuses with 404."""
        candidates = reversed(self.versions(vault, name))
        item = next((candidate for candidate in candidates if version in {"", candidate.version}), None)
        if item is None:
            message = (
                f"A {self.noun} with (name/id) {name}{'/' if version else ''}{version} was not found in this key "
                f"vault. If you recently deleted this {self.noun} you may be able to recover it."
            )
            raise answers.arm(404, f"{self.noun.title()}NotFound", message)
        return item

    def find_usable(self, vault: Json, name: str, version: str, operation: str) -> V:
        """Return one version that is enabled. Refuses a disabled one with 403."""
        item = self.find(vault, name, version)
        if not item.enabled:
            message = f"Operation {operation} is not allowed on a disabled {self.noun}."
            raise answers.arm(403, "Forbidden", message, innererror={"code": f"{self.noun.title()}Disabled"})
        return item

    def check_free(self, vault: Json, name: str, *, managed: bool = False) -> None:
        """Refuse a new version under a name that is malformed or deleted, or that a certificate manages.

        With `managed`, for a certificate: under a name that no certificate manages.
        """
        if not _NAME.fullmatch(name):
            raise answers.arm(400, "BadParameter", f"The request URI contains an invalid name: {name}")
        if _key(vault, name) in self._deletion_times:
            message = (
                f"{self.noun.title()} {name} is currently in a deleted but recoverable state, and its name cannot be "
                f"reused; in this state, the {self.noun} can only be recovered or purged."
            )
            raise answers.arm(409, "Conflict", message, innererror={"code": "ObjectIsDeletedButRecoverable"})
        versions = self.versions(vault, name)
        if versions and versions[-1].managed != managed:
            message = f"The name {name} is taken by a {self.noun} that is {'not ' if managed else ''}a certificate's."
            raise answers.arm(409, "Conflict", message)

    def add(self, vault: Json, name: str, item: V) -> None:
        """Add a version; `check_free` has been asked."""
        self._versions.setdefault(_key(vault, name), []).append(item)

    def delete(self, vault: Json, name: str, now: float) -> None:
        """Delete an object; it can be recovered."""
        self._deletion_times[_key(vault, name)] = int(now)

    def recover(self, vault: Json, name: str) -> None:
        """Undo `delete`."""
        self._deletion_times.pop(_key(vault, name), None)

    def purge(self, vault: Json, name: str) -> None:
        """Delete a deleted object for good."""
        self._deletion_times.pop(_key(vault, name), None)
        self._versions.pop(_key(vault, name), None)

    def find_deleted(self, vault: Json, name: str) -> tuple[V, int]:
        """Return the newest version of a deleted object, and when it was deleted. Refuses with 404."""
        key = _key(vault, name)
        if key not in self._deletion_times:
            noun = self.noun.title()
            raise answers.arm(404, f"{noun}NotFound", f"Deleted {noun} not found: {name}")
        return self._versions[key][-1], self._deletion_times[key]


class Objects(ABC, Generic[V]):
    """The requests that all kinds answer alike. `id_field` is what a list names an object by."""

    id_field = "id"

    def __init__(self, shelf: Shelf[V], clock: Callable[[], float]) -> None:
        self.shelf = shelf
        self._clock = clock

    async def serve(self, request: Request, vault: Json, parts: list[str]) -> Response:
        """Answer for what is not deleted; `parts` is the path below the kind."""
        if not parts:
            shelf = self.shelf
            newest = [(name, shelf.find(vault, name)) for name in shelf.names(vault)]
            return JSONResponse(self._page(request, newest, versioned=False))
        name, version = parts[0], parts[1] if len(parts) > 1 else ""
        match request.method, version:
            case "DELETE", "":
                return JSONResponse(self._delete(request, vault, name))
            case "PATCH", _ if len(parts) < 3:
                item = self.shelf.find(vault, name, version)
                self.change(item, await request.json())
                return JSONResponse(self.summary(self.document(request, name, item)))
            case "GET", "versions":
                versions = self.shelf.versions(vault, name)
                return JSONResponse(self._page(request, [(name, item) for item in versions], versioned=True))
            case "GET", _ if len(parts) < 3:
                return JSONResponse(self.document(request, name, self.read(vault, name, version)))
        raise answers.arm(405, "MethodNotAllowed", f"{request.method} is not for '{request.url.path}'.")

    async def serve_deleted(self, request: Request, vault: Json, parts: list[str]) -> Response:
        """Answer for what is deleted."""
        if not parts:
            names = self.shelf.deleted_names(vault)
            items = [self._deleted_document(request, vault, name, entry=True) for name in names]
            return JSONResponse({"value": items, "nextLink": None})
        name = parts[0]
        item, _ = self.shelf.find_deleted(vault, name)
        match request.method, parts[1:]:
            case "GET", []:
                return JSONResponse(self._deleted_document(request, vault, name))
            case "DELETE", []:
                self.purge(vault, name)
                return Response(status_code=204)
            case "POST", ["recover"]:
                self.recover(vault, name)
                return JSONResponse(self.summary(self.document(request, name, item)))
        raise answers.arm(405, "MethodNotAllowed", f"{request.method} is not for '{request.url.path}'.")

    @abstractmethod
    def document(self, request: Request, name: str, item: V) -> Json:
        """Return a version as a read answers it."""

    @abstractmethod
    def summary(self, document: Json) -> Json:
        """Return what of a document the answers to other requests show."""

    @abstractmethod
    def entry(self, document: Json) -> Json:
        """Return what of a document lists show."""

    def change(self, item: V, body: Json) -> None:
        """Carry out a PATCH."""
        change_attributes(item, body)

    def read(self, vault: Json, name: str, version: str) -> V:
        """Return the version that a GET asks for. Refuses with 404."""
        return self.shelf.find(vault, name, version)

    def delete(self, vault: Json, name: str) -> None:
        """Delete an object. What a certificate manages goes with the certificate alone."""
        if self.shelf.find(vault, name).managed:
            message = f"The {self.shelf.noun} {name} is managed by the certificate of this name; delete that one."
            raise answers.arm(403, "Forbidden", message)
        self.shelf.delete(vault, name, self._clock())

    def recover(self, vault: Json, name: str) -> None:
        """Recover a deleted object."""
        self.shelf.recover(vault, name)

    def purge(self, vault: Json, name: str) -> None:
        """Purge a deleted object."""
        self.shelf.purge(vault, name)

    def _delete(self, request: Request, vault: Json, name: str) -> Json:
        self.delete(vault, name)
        return self._deleted_document(request, vault, name)

    def _deleted_document(self, request: Request, vault: Json, name: str, *, entry: bool = False) -> Json:
        item, deleted_at = self.shelf.find_deleted(vault, name)
        document = self.document(request, name, item)
        return {
            **(self._unversioned(self.entry(document)) if entry else self.summary(document)),
            "recoveryId": f"https://{request.headers['host']}/deleted{self.shelf.noun}s/{name}",
            "deletedDate": deleted_at,
            "scheduledPurgeDate": deleted_at + RETENTION_SECONDS,
        }

    def _page(self, request: Request, items: list[tuple[str, V]], *, versioned: bool) -> Json:
        entries = [self.entry(self.document(request, name, item)) for name, item in items]
        return {"value": entries if versioned else [self._unversioned(entry) for entry in entries], "nextLink": None}

    def _unversioned(self, entry: Json) -> Json:
        return {**entry, self.id_field: entry[self.id_field].rsplit("/", 1)[0]}


def change_attributes(item: Version, body: Json) -> None:
    """Change what every kind has: enabled, nbf, exp and tags, as far as the body names them."""
    attributes = body.get("attributes") or {}
    not_before, expires = (int(attributes.get("nbf") or item.not_before), int(attributes.get("exp") or item.expires))
    item.enabled = bool(attributes.get("enabled", item.enabled))
    item.not_before, item.expires = not_before, expires
    item.tags = body.get("tags") or item.tags


def attributes_of(item: Version) -> Json:
    """Return `attributes` as documents show them."""
    times = {"created": item.created_at, "updated": item.created_at}
    times |= {key: value for key, value in (("nbf", item.not_before), ("exp", item.expires)) if value}
    return {"enabled": item.enabled, **times, "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90}


def object_id(request: Request, collection: str, name: str, version: str) -> str:
    """Return the URL of a version, which is its ID."""
    return f"https://{request.headers['host']}/{collection}/{name}/{version}"


def _key(vault: Json, name: str) -> str:
    return f"{vault['name']}/{name}".lower()


def _inside(store: dict[str, list[V]] | dict[str, int], vault: Json) -> list[str]:
    prefix = _key(vault, "")
    return [key.removeprefix(prefix) for key in store if key.startswith(prefix)]
