"""How each service says no. The forms are what SDKs parse: ARM and Key Vault `error.code`, Entra ID AADSTS numbers."""

from typing import Any

from starlette.responses import JSONResponse

Headers = dict[str, str]


class Refusal(Exception):  # noqa: N818  # it is an answer, not a fault of ours
    """Raised anywhere in a service; the gateway sends `response`."""

    def __init__(self, response: JSONResponse) -> None:
        super().__init__(response.status_code)
        self.response = response


def arm(status: int, code: str, message: str, headers: Headers | None = None, **more: Any) -> Refusal:
    """ARM's, Graph's and Key Vault's form; `more` stands beside code and message."""
    return Refusal(JSONResponse({"error": {"code": code, "message": message, **more}}, status, headers))


def entra(status: int, error: str, number: int, message: str) -> Refusal:
    """Entra ID's form: SDKs show the AADSTS number."""
    body: dict[str, Any] = {"error": error, "error_description": f"AADSTS{number}: {message}", "error_codes": [number]}
    return Refusal(JSONResponse(body, status))


def imds(status: int, description: str, error: str = "invalid_request", headers: Headers | None = None) -> Refusal:
    """IMDS's form."""
    return Refusal(JSONResponse({"error": error, "error_description": description}, status, headers))


def asked_for(status: int, headers: Headers) -> Refusal:
    """A fault that somebody asked the lab for."""
    code = "TooManyRequests" if status == 429 else "InternalServerError"
    return arm(status, code, "The lab was told to answer this.", headers)
