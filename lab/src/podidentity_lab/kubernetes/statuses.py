"""Refusals of the API: Status objects, as `kubectl` prints them."""

from typing import Any

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    501: "NotImplemented",
}


class ApiError(Exception):
    """A request that is refused; `status` is the HTTP status, `reason` Kubernetes' word for it."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason or _REASONS.get(status, "InternalError")

    def body(self) -> dict[str, Any]:
        """Return the Status object."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.status,
        }


def not_found(resource: str, name: str) -> ApiError:
    """Return a 404 in the words that `kubectl` users know."""
    return ApiError(404, f'{resource} "{name}" not found')


def beyond_the_lab(feature: str) -> ApiError:
    """Return the refusal of something that only a real cluster does."""
    return ApiError(501, f"the lab's embedded Kubernetes does not do {feature}; use --kubernetes=real")
