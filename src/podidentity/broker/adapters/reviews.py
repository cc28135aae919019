"""TokenReview and SubjectAccessReview, asked of the API server."""

from collections.abc import Mapping
from typing import Any

from podidentity.kube.api import Api
from podidentity.kube.resources import SUBJECT_REVIEWS, TOKEN_REVIEWS, Kind

_NO_NAME = {"name": ""}


class KubernetesReviews:
    """Reviews by the API server."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def review_token(self, assertion: str, audience: str) -> Mapping[str, Any]:
        """Ask whose a token is; the `status` of the answer. Raises `KubernetesError`."""
        return await self._ask(TOKEN_REVIEWS, {"token": assertion, "audiences": [audience]})

    async def review_access(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask whether somebody may do something; the `status` of the answer. Raises `KubernetesError`."""
        return await self._ask(SUBJECT_REVIEWS, spec)

    async def _ask(self, kind: Kind[dict[str, Any]], spec: Mapping[str, Any]) -> Mapping[str, Any]:
        review = await self._api.create(kind, {"metadata": _NO_NAME, "spec": spec})
        status = review.get("status")
        return status if isinstance(status, dict) else {}
