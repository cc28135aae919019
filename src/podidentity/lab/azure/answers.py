"""How each service says no. The forms are what SDKs parse: ARM and Key Vault `error.code`, Entra ID AADSTS numbers."""

from typing import Any

from starlette.responses import JSONResponse


class Refusal(Exception):  # noqa: N818  # it is an answer, not a fault of ours
    """Raised anywhere in a service; the gateway sends `response`."""

    def __init__(self, response: JSONResponse) -> None:
        super().__init__(response.status_code)
        self.response = response


def arm(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Refusal:
    """ARM's, Graph's and Key Vault's form."""
    return Refusal(JSONResponse({"error": {"code": code, "message": message}}, status, headers))


def entra(status: int, error: str, number: int, message: str) -> Refusal:
    """Entra ID's form: SDKs show the AADSTS number."""
    body: dict[str, Any] = {"error": error, "error_description": f"AADSTS{number}: {message}", "error_codes": [number]}
    return Refusal(JSONResponse(body, status))


def imds(status: int, description: str, error: str = "invalid_request") -> Refusal:
    """IMDS's form."""
    return Refusal(JSONResponse({"error": error, "error_description": description}, status))
