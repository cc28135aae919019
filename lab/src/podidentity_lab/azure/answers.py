"""Refusals in each service's form, which SDKs parse: ARM's and Key Vault's `error.code`, Entra ID's AADSTS numbers."""

import json
from typing import Any

from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import blob_xml

Headers = dict[str, str]
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What services raise for a body of another form than the operation takes: they read fields without asking first."""

_LONGEST_DETAIL = 300  # characters: some errors quote what they read


class Refusal(Exception):  # noqa: N818  # it is an answer, not a fault of ours
    """Raised anywhere in a service; the gateway sends `response`."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response

    @property
    def error(self) -> dict[str, Any]:
        """Code and message of a refusal in ARM's form."""
        return dict(json.loads(bytes(self.response.body))["error"])


def arm(status: int, code: str, message: str, headers: Headers | None = None, **extra: Any) -> Refusal:
    """Return a refusal in the form of ARM, Graph and Key Vault; `extra` fields stand beside code and message."""
    return Refusal(JSONResponse({"error": {"code": code, "message": message, **extra}}, status, headers))


def malformed(error: Exception) -> Refusal:
    """Return the refusal of a body that is not what the operation takes; `error` is one of `MALFORMED`."""
    return Refusal(ContentError(error))


def entra(status: int, error: str, number: int, message: str, headers: Headers | None = None) -> Refusal:
    """Return a refusal in Entra ID's form: SDKs show the AADSTS number."""
    body: dict[str, Any] = {"error": error, "error_description": f"AADSTS{number}: {message}", "error_codes": [number]}
    return Refusal(JSONResponse(body, status, headers))


def unknown_application(client_id: str) -> Refusal:
    """Return Entra ID's refusal of an application that the tenant does not have."""
    message = f"Application with identifier '{client_id}' was not found in the directory 'lab'."
    return entra(400, "unauthorized_client", 700016, message)


def description(refusal: Refusal) -> str:
    """Return the sentence of a refusal in Entra ID's form."""
    return str(json.loads(bytes(refusal.response.body))["error_description"])


def imds(status: int, description: str, error: str = "invalid_request", headers: Headers | None = None) -> Refusal:
    """Return a refusal in IMDS's form."""
    return Refusal(JSONResponse({"error": error, "error_description": description}, status, headers))


def asked_for(status: int, headers: Headers) -> Refusal:
    """Return a refusal that a user asked the lab for (`Faults`)."""
    code = "TooManyRequests" if status == 429 else "InternalServerError"
    return arm(status, code, "The lab was told to answer this.", headers)


class ContentError(JSONResponse):
    """A refusal of a body that is not what the operation takes. The client is told what Python says of it.

    The log is not: Python quotes what it cannot read, which may be a secret.
    """

    def __init__(self, error: Exception) -> None:
        code, message = "InvalidRequestContent", f"The request content was invalid: {type(error).__name__}"
        detail = f"it has no {error}" if isinstance(error, KeyError) else str(error)[:_LONGEST_DETAIL]
        super().__init__({"error": {"code": code, "message": f"{message}: {detail}"}}, 400)
        self.reason = f"{code}: {message}"


class StorageError(Response):
    """A refusal of Blob storage with the error that its XML tells, for the log."""

    def __init__(self, status: int, code: str, message: str, headers: Headers) -> None:
        body = blob_xml.error(code, message) if status != 304 else b""
        super().__init__(body, status, {"x-ms-error-code": code, **headers}, "application/xml")
        self.reason = f"{code}: {message}"


def storage(status: int, code: str, message: str, headers: Headers | None = None) -> Refusal:
    """Return a refusal in Blob storage's form: XML, its code in a header too, since HEAD and 304 have no body."""
    return Refusal(StorageError(status, code, message, headers or {}))


def storage_asked_for(status: int, headers: Headers) -> Refusal:
    """Return a refusal that a user asked the lab for, in Blob storage's form."""
    code = "ServerBusy" if status in {429, 503} else "InternalError"
    return storage(status, code, "The lab was told to answer this.", headers)


def entra_asked_for(status: int, headers: Headers) -> Refusal:
    """Return the same in Entra ID's form: 90055 is its number for too many requests, 90033 for a passing error."""
    number = 90055 if status == 429 else 90033
    return entra(status, "temporarily_unavailable", number, "The lab was told to answer this.", headers)
