"""A machine's metadata service beyond the happy path: faults, limits, what the machine is."""

import asyncio
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from podidentity_lab.azure import Azure, AzureSettings
from podidentity_lab.azure.state import Principal

URL = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
HEADER = {"Metadata": "true"}


@pytest.fixture
def azure() -> Azure:
    """A tenant with a scale set that carries a system-assigned identity."""
    made = Azure(AzureSettings())
    made.add_scale_set("ss", 2)
    machine = next(iter(made.state.machines.values()))
    made.state.principals["system"] = Principal("system", "client", "ss", resource_id=machine.id)
    machine.system_principal = "system"
    return made


@pytest.fixture
def instance(azure: Azure) -> str:
    """The ID of the scale set's second instance."""
    return f"{next(iter(azure.state.machines.values())).id}/virtualMachines/1"


def test_it_fails_as_it_is_told_and_then_recovers(azure: Azure, instance: str) -> None:
    """IMDS answers each fault that is set, with the Retry-After that is set, and then a token."""
    imds = TestClient(azure.imds(instance))
    azure.faults.imds_statuses += [410, 429, 500]
    azure.faults.retry_after_seconds = 3
    answers = [imds.get(URL, headers=HEADER) for _ in range(4)]
    assert [one.status_code for one in answers] == [410, 429, 500, 200]
    assert [one.headers.get("Retry-After") for one in answers] == ["3", "3", "3", None]
    assert [one.json().get("error") for one in answers] == ["gone", "too_many_requests", "unknown", None]


def test_a_share_of_the_answers_fails_as_long_as_it_is_told(azure: Azure, instance: str) -> None:
    """With a share of 0.25 each fourth answer fails; tokens live for the seconds that are set."""
    imds = TestClient(azure.imds(instance))
    azure.faults.imds_fails, azure.faults.imds_token_seconds = 0.25, 120
    answers = [imds.get(URL, headers=HEADER) for _ in range(8)]
    assert [one.status_code for one in answers] == [200, 200, 200, 500] * 2
    assert answers[0].json()["expires_in"] == "120"
    azure.faults.imds_fails = 0.0
    assert {imds.get(URL, headers=HEADER).status_code for _ in range(8)} == {200}


async def test_five_at_once_and_no_more(azure: Azure, instance: str) -> None:
    """Of six token requests at the same time five are answered and one gets 429."""
    azure.faults.imds_seconds = 0.5
    transport = httpx2.ASGITransport(app=azure.imds(instance))
    async with httpx2.AsyncClient(transport=transport, base_url="http://169.254.169.254") as http:
        answers = await asyncio.gather(*(http.get(URL, headers=HEADER) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429]


def test_a_resource_that_nobody_has_is_refused(azure: Azure, instance: str) -> None:
    """The answer has Entra ID's number AADSTS500011 in IMDS's form."""
    refused = TestClient(azure.imds(instance)).get(
        "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://nowhere.example", headers=HEADER
    )
    body: dict[str, Any] = refused.json()
    assert (refused.status_code, body["error"]) == (400, "invalid_resource")
    assert body["error_description"].startswith("AADSTS500011")


def test_an_instance_knows_what_it_is(azure: Azure, instance: str) -> None:
    """Instance metadata has the scale set and the instance's own ID; `/versions` lists the API versions."""
    imds = TestClient(azure.imds(instance))
    compute = imds.get("/metadata/instance?api-version=2021-02-01", headers=HEADER).json()["compute"]
    assert (compute["name"], compute["vmScaleSetName"]) == ("ss_1", "ss")
    assert compute["resourceId"] == instance
    assert "2018-02-01" in imds.get("/metadata/versions", headers=HEADER).json()["apiVersions"]
    assert imds.get("/metadata/instance", headers=HEADER).status_code == 400
