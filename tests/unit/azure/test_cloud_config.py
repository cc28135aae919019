"""azure.json and the environment: what is read, and the sentence when something is wrong."""

import json
from pathlib import Path

import pytest

from podidentity.azure.cloud_config import load_cloud_config
from podidentity.azure.clouds import find_cloud
from podidentity.azure.reloading import ReloadedConfig
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
    """The file may be JSON or YAML, as upstream allows."""
    config = load_cloud_config(written(tmp_path, text), {})
    assert (config.tenant_id, config.client_id, config.subscription_id) == ("t", "c", "s")
    assert config.cloud.arm == "https://management.usgovcloudapi.net"


def test_the_secret_never_shows_in_a_repr(tmp_path: Path) -> None:
    """Logs print the repr of values, so the configuration's repr leaves the client secret out."""
    assert "s3cr3t" not in repr(load_cloud_config(written(tmp_path, json.dumps(GOOD)), {}))


def test_a_managed_identity_needs_no_secret(tmp_path: Path) -> None:
    """A managed identity is read without a secret; the value of USE_MSI may be in any case."""
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
    """Each mistake in the file is one sentence that names what is wrong with the file or with which field."""
    with pytest.raises(ConfigurationError, match=said):
        load_cloud_config(written(tmp_path, text), {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error names the missing file and the flag that points to it."""
    with pytest.raises(ConfigurationError, match=r"nothing\.json: No such file.*--cloudconfig"):
        load_cloud_config(str(tmp_path / "nothing.json"), {})


def test_a_missing_variable_is_named() -> None:
    """Without --cloudconfig the environment is read, and the error names the variable that is empty."""
    with pytest.raises(ConfigurationError, match="SUBSCRIPTION_ID is empty"):
        load_cloud_config("", {})


def test_a_custom_cloud_needs_its_endpoints(tmp_path: Path) -> None:
    """A custom cloud's endpoints come from the file that a variable names; without the variable the error names it."""
    path = tmp_path / "cloud.json"
    path.write_text(
        json.dumps({"resourceManagerEndpoint": "https://arm.lab/", "activeDirectoryEndpoint": "https://l/"})
    )
    given = written(tmp_path, json.dumps({**GOOD, "cloud": "AzureStackCloud"}))
    assert load_cloud_config(given, {"AZURE_ENVIRONMENT_FILEPATH": str(path)}).cloud.arm == "https://arm.lab"
    with pytest.raises(ConfigurationError, match="set AZURE_ENVIRONMENT_FILEPATH"):
        load_cloud_config(given, {})


def test_a_certificate_takes_the_place_of_the_secret(tmp_path: Path) -> None:
    """A certificate and its password are read from the fields that the Azure cloud provider uses."""
    given = {name: value for name, value in GOOD.items() if name != "aadClientSecret"}
    told = given | {"aadClientCertPath": "/mic.pfx", "aadClientCertPassword": "s3cr3t"}
    config = load_cloud_config(written(tmp_path, json.dumps(told)), {})
    assert (config.certificate_path, config.certificate_password) == ("/mic.pfx", "s3cr3t")
    assert "s3cr3t" not in repr(config)


def test_every_variable_is_read() -> None:
    """The variables have upstream's names."""
    config = load_cloud_config(
        "",
        {
            "CLOUD": "AzureChinaCloud",
            "TENANT_ID": "t",
            "CLIENT_ID": "c",
            "CLIENT_SECRET": "x",
            "SUBSCRIPTION_ID": "s",
            "RESOURCE_GROUP": "g",
            "VM_TYPE": "vmss",
            "USE_MSI": "yes",
            "USER_ASSIGNED_MSI_CLIENT_ID": "OWN",
        },
    )
    assert config.cloud.name == "AzureChinaCloud"
    assert (config.tenant_id, config.client_id, config.client_secret) == ("t", "c", "x")
    assert (config.subscription_id, config.resource_group) == ("s", "g")
    assert (config.managed_identity, config.user_assigned_identity) == (False, "own")


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        ("", "https://management.azure.com"),
        ("AzureCloud", "https://management.azure.com"),
        ("AZUREPUBLICCLOUD", "https://management.azure.com"),
        ("AzureUSGovernment", "https://management.usgovcloudapi.net"),
        ("azureusgovernmentcloud", "https://management.usgovcloudapi.net"),
        ("AzureChinaCloud", "https://management.chinacloudapi.cn"),
        ("AzureGermanCloud", "https://management.microsoftazure.de"),
    ],
)
def test_clouds_are_found_in_any_case(name: str, arm: str) -> None:
    """Azure's clouds are found by azure.json's names and by those of az, in upper or lower case."""
    assert find_cloud(name).arm == arm
    assert find_cloud(name).in_the_clear == ()


def test_a_custom_cloud_is_taken_as_it_stands(tmp_path: Path) -> None:
    """Field names are read in any case; an endpoint with plain HTTP is accepted and listed in `in_the_clear`."""
    path = tmp_path / "cloud.json"
    given = {
        "ResourceManagerEndpoint": "http://arm.local:8080/",
        "activeDirectoryEndpoint": "https://login.local/",
        "serviceManagementEndpoint": "https://audience.local/guid",
    }
    path.write_text(json.dumps(given))
    cloud = find_cloud("AzureStackCloud", str(path))
    assert (cloud.arm, cloud.login) == ("http://arm.local:8080", "https://login.local")
    assert cloud.audience == "https://audience.local/guid"
    assert cloud.in_the_clear == ("http://arm.local:8080",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", '"resourceManagerEndpoint" must be an address'),
        ('{"resourceManagerEndpoint": "https://a", "activeDirectoryEndpoint": "b"}', '"activeDirectoryEndpoint" must'),
    ],
)
def test_a_custom_cloud_that_is_none_is_told(tmp_path: Path, text: str, said: str) -> None:
    """The error says that the file cannot be read, or names the field that is not an address."""
    path = tmp_path / "cloud.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        find_cloud("azurestackcloud", str(path))


def test_a_custom_cloud_needs_its_file() -> None:
    """The error names the variable that has to name the file."""
    with pytest.raises(ConfigurationError, match="AZURE_ENVIRONMENT_FILEPATH"):
        find_cloud("AzureStackCloud")


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new configuration is read; a broken file changes nothing, with one warning for each broken version."""
    path = written(tmp_path, json.dumps(GOOD))
    config = ReloadedConfig(path, {})
    assert config.reload() is None
    written(tmp_path, "{ broken")
    assert config.reload() is None
    assert config.reload() is None
    assert caplog.text.count("is not used, the former one stays") == 1
    Path(path).unlink()
    assert config.reload() is None
    written(tmp_path, json.dumps(GOOD | {"aadClientSecret": "second"}))
    fresh = config.reload()
    assert fresh is config.current
    assert fresh is not None
    assert fresh.client_secret == "second"
    written(tmp_path, json.dumps(GOOD | {"aadClientSecret": "second"}) + "  ")
    assert config.reload() is None
