"""MIC signs in with a certificate, at an Entra ID on a real TLS socket that checks the signature."""

from pathlib import Path

import httpx2
import pytest

from daemons.nmi.entra import StandInEntra
from daemons.nmi.test_principals import PASSWORD, Pair, entra, pair
from podidentity.azure.cloud_config import CloudConfig
from podidentity.azure.clouds import Cloud
from podidentity.azure.credentials import ArmCredential
from podidentity.errors import AzureError

__all__ = ["entra", "pair"]  # fixtures


async def login(entra: StandInEntra, path: Path, password: str) -> str:
    """Return a token for the certificate of an azure.json."""
    cloud = Cloud("Lab", entra.login, "https://arm.example", "https://arm.example/")
    config = CloudConfig(
        cloud, "tenant-1", "sub", "group", "mic", certificate_path=str(path), certificate_password=password
    )
    async with httpx2.AsyncClient() as http:
        return await ArmCredential(config, http).token()


async def test_a_certificate_gets_a_token(entra: StandInEntra, pair: Pair, tmp_path: Path) -> None:  # fixtures
    """A certificate with its password gets a token by a signed assertion."""
    entra.applications["mic"] = pair.certificate
    path = tmp_path / "mic.pfx"
    path.write_bytes(pair.archive(PASSWORD))
    assert await login(entra, path, PASSWORD)
    assert entra.forms[-1]["client_assertion_type"].endswith("jwt-bearer")


async def test_a_wrong_password_is_a_sentence(entra: StandInEntra, pair: Pair, tmp_path: Path) -> None:  # fixtures
    """A wrong password is an AzureError that names the file and the field to correct."""
    path = tmp_path / "mic.pfx"
    path.write_bytes(pair.archive(PASSWORD))
    with pytest.raises(AzureError, match=r"mic\.pfx cannot be used: .*aadClientCertPassword"):
        await login(entra, path, "wrong")
