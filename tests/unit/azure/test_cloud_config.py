"""azure.json and the environment: what is read, and the one sentence when it is wrong."""

import json
from pathlib import Path

import pytest

from podidentity.azure.cloud_config import load_cloud_config
from podidentity.errors import ConfigurationError

GOOD = {
    "cloud": "AzureUSGovernment",
    "tenantId": "t",
    "aadClientId": "c",
    "aadClientSecret": "s3cr3t",
    "subscriptionId": "s",
    "resourceGroup": "g",
}


def written(folder: Path, text: str) -> str:
    """Write azure.json."""
    path = folder / "azure.json"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("text", [json.dumps(GOOD), "\n".join(f"{name}: {value}" for name, value in GOOD.items())])
def test_json_and_yaml_are_read(tmp_path: Path, text: str) -> None:
    """Upstream allows both."""
    config = load_cloud_config(written(tmp_path, text), {})
    assert (config.tenant_id, config.client_id, config.subscription_id) == ("t", "c", "s")
    assert config.cloud.arm == "https://management.usgovcloudapi.net"


def test_the_secret_never_shows_in_a_repr(tmp_path: Path) -> None:
    """Logs print values."""
    assert "s3cr3t" not in repr(load_cloud_config(written(tmp_path, json.dumps(GOOD)), {}))


def test_a_managed_identity_needs_no_secret(tmp_path: Path) -> None:
    """USE_MSI is true for "true" in any case."""
    given = {"subscriptionId": "s", "resourceGroup": "g", "useManagedIdentityExtension": True}
    assert load_cloud_config(written(tmp_path, json.dumps(given)), {}).managed_identity
    variables = {"SUBSCRIPTION_ID": "s", "RESOURCE_GROUP": "g", "USE_MSI": "True"}
    assert load_cloud_config("", variables).managed_identity


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("a: [", "neither JSON nor YAML"),
        ("just text", "holds no fields"),
        (json.dumps({**GOOD, "subscriptionId": ""}), '"subscriptionId" is empty'),
        (json.dumps({**GOOD, "cloud": "Nimbus"}), 'cloud "Nimbus" is unknown'),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    """One sentence, with the file or the field in it."""
    with pytest.raises(ConfigurationError, match=said):
        load_cloud_config(written(tmp_path, text), {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """And the flag that names it."""
    with pytest.raises(ConfigurationError, match=r"nothing\.json: No such file.*--cloudconfig"):
        load_cloud_config(str(tmp_path / "nothing.json"), {})


def test_a_missing_variable_is_named() -> None:
    """Without --cloudconfig the environment speaks."""
    with pytest.raises(ConfigurationError, match="SUBSCRIPTION_ID is empty"):
        load_cloud_config("", {})


def test_a_custom_cloud_needs_its_endpoints(tmp_path: Path) -> None:
    """They are taken as they stand."""
    path = tmp_path / "cloud.json"
    path.write_text(
        json.dumps({"resourceManagerEndpoint": "https://arm.lab/", "activeDirectoryEndpoint": "https://l/"})
    )
    given = written(tmp_path, json.dumps({**GOOD, "cloud": "AzureStackCloud"}))
    assert load_cloud_config(given, {"AZURE_ENVIRONMENT_FILEPATH": str(path)}).cloud.arm == "https://arm.lab"
    with pytest.raises(ConfigurationError, match="set AZURE_ENVIRONMENT_FILEPATH"):
        load_cloud_config(given, {})
