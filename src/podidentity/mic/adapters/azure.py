"""MIC's way to Azure: its HTTP client, its machines in ARM, and what azure.json contributes to the policy."""

import logging

import httpx2

from podidentity.azure.cloud_config import CloudConfig
from podidentity.azure.compute import Machines
from podidentity.azure.credentials import IMDS_HOST, ArmCredential
from podidentity.azure.management import Management
from podidentity.core.model.policy import Policy
from podidentity.mic.settings import Settings

_TIMEOUT_SECONDS = 60.0
_log = logging.getLogger(__name__)


def open_azure(user_agent: str) -> httpx2.AsyncClient:
    """Return a client for Entra ID, ARM and IMDS; the caller closes it."""
    return httpx2.AsyncClient(
        timeout=_TIMEOUT_SECONDS,
        headers={"User-Agent": user_agent},
        mounts={f"all://{IMDS_HOST}": None},  # a proxy of the environment must not see the requests to IMDS
    )


def machines_of(config: CloudConfig, credential: ArmCredential, azure: httpx2.AsyncClient) -> Machines:
    """Return the VMs and scale sets of the cloud that azure.json names."""
    return Machines(Management(config.cloud.arm, credential, azure))


def policy_of(settings: Settings, config: CloudConfig) -> Policy:
    """Return the policy that decisions depend on."""
    return Policy(
        force_namespaced=settings.force_namespaced,
        immutable_client_ids=frozenset(client_id.lower() for client_id in settings.immutable_client_ids),
        cluster_client_id=config.user_assigned_identity,
        subscription=config.subscription_id,
        group=config.resource_group,
        allow_list=settings.allow_list,
        assign_on_binding=settings.assign_on_binding,
    )


def is_same_cloud(config: CloudConfig, other: CloudConfig) -> bool:
    """Whether decisions come out the same under both configurations. Credentials do not count."""
    fields = (
        (side.cloud, side.subscription_id, side.resource_group, side.user_assigned_identity) for side in (config, other)
    )
    return next(fields) == next(fields)


def warn_of_plain_http(config: CloudConfig) -> None:
    """Warn of each endpoint to which MIC's credentials go without TLS."""
    for address in config.cloud.in_the_clear:
        _log.warning("MIC's credentials go to %s without TLS; give that endpoint a certificate", address)
