"""Gathers what the tokens of pods with workload identity depend on, for `explain`."""

import contextlib
from collections.abc import Mapping
from typing import Any

from podidentity.cli import broker_facts
from podidentity.cli.daemon_settings import read_settings
from podidentity.core.exchange.callers import AUDIENCE
from podidentity.core.injection.rules import USE_LABEL
from podidentity.core.model.identities import ObjectKey
from podidentity.core.report import workloads
from podidentity.core.report.findings import Finding
from podidentity.core.report.workloads import WorkloadCase
from podidentity.errors import ForbiddenError, NotFoundError
from podidentity.kube import grants, resources
from podidentity.kube.api import Api, Selection
from podidentity.kube.installation import find_daemons
from podidentity.kube.issuer import read_issuer

SELECTOR = f"{USE_LABEL}=true"


async def explain(api: Api, namespace: str, key: ObjectKey | None) -> dict[ObjectKey, tuple[Finding, ...]]:
    """Return the findings on one pod, or on those with the label; nothing on pods without workload identity.

    Raises KubernetesError.
    """
    if key is not None:
        pods = [await api.get(resources.PODS.as_json(), key)]
    else:
        pods = list((await api.list(resources.PODS.as_json(), Selection(namespace, SELECTOR))).values)
    concerned = [pod for pod in pods if workloads.concerns(pod)]
    if not concerned:
        return {}
    cases = await _Cases.read(api)
    explanations = {}
    for pod in concerned:
        case = await cases.case_of(pod)
        explanations[case.key] = workloads.explain(case)
    return explanations


class _Cases:
    """What is the same for all pods of a cluster, and service accounts as they are read."""

    def __init__(
        self, api: Api, audience: str, issuer: str, roles: Mapping[str, tuple[str, ...]], token_file_port: int | None
    ) -> None:
        self._api = api
        self._token_file_port = token_file_port
        self._audience = audience
        self._issuer = issuer
        self._roles = roles
        self._accounts: dict[ObjectKey, Mapping[str, str] | None] = {}
        self._answers: dict[tuple[ObjectKey, str], bool | None] = {}

    @classmethod
    async def read(cls, api: Api) -> "_Cases":
        """Read what is the same for all; what may not be read is left out."""
        audience, issuer, roles, port = AUDIENCE, "", {}, None
        with contextlib.suppress(ForbiddenError):
            brokers = await broker_facts.find_brokers(api)
            audience = brokers[0].pod_audience if brokers else AUDIENCE
        with contextlib.suppress(ForbiddenError, NotFoundError):
            issuer = str(((await read_issuer(api)).configuration or {}).get("issuer", ""))
        with contextlib.suppress(ForbiddenError):
            roles = await grants.find_granting_roles(api)
        with contextlib.suppress(ForbiddenError):
            port = read_settings((), await find_daemons(api, "nmi")).token_file_port
        return cls(api, audience, issuer, roles, port)

    async def case_of(self, pod: Mapping[str, Any]) -> WorkloadCase:
        """Return the part of it that is about one pod."""
        key = WorkloadCase(pod).account_key
        account = await self._account(key)
        client_id = workloads.client_id_of(pod, account)
        return WorkloadCase(
            pod,
            account,
            await self._may_use(key, client_id) if client_id else None,
            self._roles.get(client_id, ()),
            self._audience,
            self._issuer,
            self._token_file_port,
        )

    async def _account(self, key: ObjectKey) -> Mapping[str, str] | None:
        if key not in self._accounts:
            try:
                self._accounts[key] = (await self._api.get(resources.SERVICE_ACCOUNTS, key)).annotations
            except NotFoundError:
                self._accounts[key] = None
        return self._accounts[key]

    async def _may_use(self, account: ObjectKey, client_id: str) -> bool | None:
        if (account, client_id) not in self._answers:
            try:
                self._answers[account, client_id] = await grants.may_use(self._api, account, client_id)
            except ForbiddenError:
                self._answers[account, client_id] = None
        return self._answers[account, client_id]
