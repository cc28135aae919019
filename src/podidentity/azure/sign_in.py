"""Signs a person in to Azure: with a service principal of the environment, else with azure-cli."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2

from podidentity.azure.cloud_config import CloudConfig
from podidentity.azure.clouds import Cloud
from podidentity.azure.credentials import ArmCredential
from podidentity.azure.management import Credential
from podidentity.errors import AzureError, HostError


def credential_of(cloud: Cloud, environ: Mapping[str, str], http: httpx2.AsyncClient, audience: str = "") -> Credential:
    """Return where tokens come from: for ARM, unless `audience` names another service."""
    cloud = replace(cloud, audience=audience or cloud.audience)
    tenant, client_id = environ.get("AZURE_TENANT_ID", ""), environ.get("AZURE_CLIENT_ID", "")
    secret, certificate = environ.get("AZURE_CLIENT_SECRET", ""), environ.get("AZURE_CLIENT_CERTIFICATE_PATH", "")
    if tenant and client_id and (secret or certificate):
        password = environ.get("AZURE_CLIENT_CERTIFICATE_PASSWORD", "")
        config = CloudConfig(
            cloud,
            tenant,
            "",
            "",
            client_id=client_id,
            client_secret=secret,
            certificate_path=certificate,
            certificate_password=password,
            origin="AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET",
            certificate_origin="AZURE_CLIENT_CERTIFICATE_PATH and AZURE_CLIENT_CERTIFICATE_PASSWORD",
        )
        return ArmCredential(config, http)
    return AzureCli(cloud.audience)


def is_signed_in(environ: Mapping[str, str], home: Path | None) -> bool:
    """Whether somebody seems to have signed in: a service principal's variables, or azure-cli's profile."""
    if environ.get("AZURE_CLIENT_ID") and (
        environ.get("AZURE_CLIENT_SECRET") or environ.get("AZURE_CLIENT_CERTIFICATE_PATH")
    ):
        return True
    folder = Path(environ["AZURE_CONFIG_DIR"]) if environ.get("AZURE_CONFIG_DIR") else home and home / ".azure"
    try:
        profile = json.loads((folder / "azureProfile.json").read_text(encoding="utf-8-sig")) if folder else {}
    except (OSError, ValueError):
        return False
    return isinstance(profile, dict) and bool(profile.get("subscriptions"))


class AzureCli:
    """Tokens of whoever has signed in with `az login`; az keeps and renews them."""

    def __init__(self, audience: str) -> None:
        self._audience = audience

    async def token(self) -> str:
        """Return a token for ARM. Raises HostError without az, AzureError when nobody has signed in."""
        command = ["az", "account", "get-access-token", "--resource", self._audience, "--output", "json"]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
        except FileNotFoundError:
            raise HostError(
                "az is not installed; install it and run `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and "
                "AZURE_CLIENT_SECRET"
            ) from None
        output, errors = await process.communicate()
        if process.returncode:
            last = (errors.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise AzureError(f"az gave no token for ARM: {last}; run az login")
        return _token_in(output)

    def note_refused(self, token: str) -> None:
        """Do nothing: az decides which token is good."""


def _token_in(output: bytes) -> str:
    try:
        content: Any = json.loads(output)
        return str(content["accessToken"])
    except (ValueError, KeyError, TypeError):
        raise AzureError("az printed no token for ARM; update az") from None
