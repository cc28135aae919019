"""ARM's slower and stricter sides: operations, limits, faults on request, federated credentials, roles."""

import uuid
from collections.abc import Callable

import httpx2
import pytest
from starlette.testclient import TestClient

from clocks import JumpingClock
from daemons.lab_azure.management import ARM, SCOPE, VERSION, Management
from podidentity_lab.azure import Azure

Send = Callable[..., httpx2.Response]
SignIn = Callable[..., str]


@pytest.fixture
def clock() -> JumpingClock:
    """Return a clock that jumps."""
    return JumpingClock()


@pytest.fixture
def azure(clock: JumpingClock) -> Azure:
    """A fresh tenant on the tests' clock."""
    from podidentity_lab.azure import AzureSettings  # noqa: PLC0415  # replaces the conftest's fixture here alone

    return Azure(AzureSettings(), clock.wall)


def test_a_patch_takes_effect_when_its_time_is_over(manage: Management, azure: Azure, clock: JumpingClock) -> None:
    """Until then its operation is InProgress and a second PATCH is refused; afterwards the identity is there."""
    azure.faults.patch_seconds = 45
    one = manage.identity("one")
    answer = manage.patch(one)
    assert (answer.status_code, answer.headers["Retry-After"]) == (200, "1")
    where = answer.headers["Azure-AsyncOperation"]
    assert where.startswith(ARM)
    clock.jump(44)
    polled = manage.send("GET", where, manage.token)
    assert (polled.json()["status"], polled.headers["Retry-After"]) == ("InProgress", "1")
    assert manage("GET", manage.scale_set).json()["properties"]["provisioningState"] == "Updating"
    assert manage.carried() == set()
    assert manage.code(manage.patch(one)) == "OperationNotAllowed"
    clock.jump(2)
    assert manage.send("GET", where, manage.token).json()["status"] == "Succeeded"
    assert manage.carried() == {one}


def test_an_operation_can_be_told_to_fail(manage: Management, azure: Azure, clock: JumpingClock) -> None:
    """The operation ends as Failed with the given code, and the scale set has not changed."""
    azure.faults.operation_errors.append("NetworkingInternalOperationError")
    answer = manage.patch(manage.identity("one"))
    clock.jump(1)
    polled = manage.send("GET", answer.headers["Azure-AsyncOperation"], manage.token).json()
    assert (polled["status"], polled["error"]["code"]) == ("Failed", "NetworkingInternalOperationError")
    assert manage.carried() == set()


def test_a_machine_carries_a_system_assigned_identity(manage: Management, clock: JumpingClock) -> None:
    """`SystemAssigned` creates a principal; `None` removes it with all other identities."""
    one = manage.identity("one")
    body = {"identity": {"type": "SystemAssigned, UserAssigned", "userAssignedIdentities": {one: {}}}}
    assert manage("PATCH", manage.scale_set, body).status_code == 200
    clock.jump(1)
    shown = manage("GET", manage.scale_set).json()["identity"]
    assert shown["type"] == "SystemAssigned, UserAssigned"
    assert shown["principalId"] in manage.azure.state.principals
    none = {"identity": {"type": "None", "userAssignedIdentities": None}}
    assert manage("PATCH", manage.scale_set, none).status_code == 200
    clock.jump(1)
    assert "identity" not in manage("GET", manage.scale_set).json()
    assert shown["principalId"] not in manage.azure.state.principals


def test_more_than_150_identities_are_refused(manage: Management) -> None:
    """A PATCH with more than 150 identities gets BadRequest, as from Azure."""
    assert manage.code(manage.patch(*(f"{manage.group}/x/{number}" for number in range(151)))) == "BadRequest"


def test_limits_refill_at_azures_pace(manage: Management, azure: Azure, clock: JumpingClock) -> None:
    """With limits on, 12 updates and 36 reads pass at once, the next gets 429 with Retry-After; reads refill in 5 s."""
    for _ in range(40):
        assert manage("GET", manage.scale_set).status_code == 200
    azure.faults.throttle = True
    statuses = [manage("GET", manage.scale_set).status_code for _ in range(37)]
    assert statuses == [200] * 36 + [429]
    refused = manage("GET", manage.scale_set)
    assert refused.headers["Retry-After"] == "5"
    assert refused.json()["error"]["details"][0]["code"] == "TooManyRequests"
    clock.jump(5)
    assert manage("GET", manage.scale_set).status_code == 200
    updates = [manage.patch(value="x").status_code for _ in range(13)]
    assert updates[-1] == 429
    assert 429 not in updates[:12]


def test_faults_are_set_through_the_labs_own_door(manage: Management, azure: Azure) -> None:
    """PATCH /faults sets all fields that it is sent or none, and names wrong ones; ARM then answers accordingly."""
    door = TestClient(azure.admin)
    assert door.patch("/faults", json={"arm_statuses": [503], "retry_after_seconds": 7}).status_code == 200
    refused = manage("GET", manage.group)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "7")
    assert manage("GET", manage.group).status_code == 200
    wrong = door.patch("/faults", json={"patch_seconds": 9, "imds_seconds": "soon"})
    assert wrong.status_code == 400
    assert "imds_seconds" in wrong.json()["error"]
    assert "patch_seconds" in door.patch("/faults", json={"unknown": 1}).json()["error"]
    assert door.get("/faults").json()["patch_seconds"] != 9
    assert door.get("/log").json()[-1]["service"] == "arm"
    assert manage("PATCH", "/faults", {"patch_seconds": 9}).status_code == 404


@pytest.mark.parametrize(
    ("role", "allowed", "refused"),
    [
        ("Reader", ("GET",), ("PUT", "DELETE")),
        ("Contributor", ("GET", "PUT", "DELETE"), ()),
        ("Managed Identity Contributor", ("GET", "PUT", "DELETE"), ()),
        ("Managed Identity Operator", ("GET",), ("PUT", "DELETE")),
        ("Virtual Machine Contributor", (), ("GET", "PUT", "DELETE")),
    ],
)
def test_a_role_allows_what_azures_allows_below_its_scope(
    manage: Management, sign_in: SignIn, role: str, allowed: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    """A role on a resource group holds for an identity in the group, and for nothing in another group."""
    somebody = manage.azure.settings.cluster
    one = manage.identity("one")
    mine = Management(manage.azure, manage.send, sign_in(SCOPE, somebody))
    assert mine.code(mine("GET", one)) == "AuthorizationFailed"
    manage.give(somebody, role, manage.group)
    for method in (*allowed, *refused):
        answer = mine(method, one, {"location": "eastus"} if method == "PUT" else None)
        assert (answer.status_code == 403) == (method in refused), f"{method}: {answer.text}"
    other = manage.group.replace("/rg", "/rgx")
    assert manage("PUT", other, {"location": "eastus"}).status_code == 201
    assert mine("GET", f"{other}/providers/Microsoft.KeyVault/vaults/v").status_code == 403


def test_virtual_machine_contributor_may_patch_machines(manage: Management, sign_in: SignIn) -> None:
    """Such a principal also needs Managed Identity Operator on each identity that it assigns."""
    machine_admin = manage.azure.settings.cluster
    manage.azure.state.roles.clear()
    manage.azure.state.roles |= Azure(manage.azure.settings).state.roles
    mine = Management(manage.azure, manage.send, sign_in(SCOPE, machine_admin))
    one = manage.identity("one")
    manage.give(machine_admin, "Virtual Machine Contributor", manage.scale_set)
    assert mine.code(mine.patch(one)) == "LinkedAuthorizationFailed"
    manage.give(machine_admin, "Managed Identity Operator", one)
    assert mine.patch(one).status_code == 200


def test_an_identity_has_at_most_twenty_federated_credentials(manage: Management) -> None:
    """A 21st is refused, and so are a second one for an issuer and subject and an issuer without TLS."""
    base = f"{manage.identity('one')}/federatedIdentityCredentials"

    def put(name: str, subject: str, issuer: str = "https://issuer.example") -> httpx2.Response:
        given = {"issuer": issuer, "subject": subject, "audiences": ["api://AzureADTokenExchange"]}
        return manage("PUT", f"{base}/{name}", {"properties": given})

    assert [put(f"nr{number}", f"s{number}").status_code for number in range(20)] == [201] * 20
    assert put("nr3", "other").status_code == 200
    assert put("n20", "s20").status_code == 400
    assert manage("DELETE", f"{base}/nr0").status_code == 200
    assert put("n20", "s19").status_code == 400
    assert put("n20", "s20", "http://issuer.example").status_code == 400
    assert len(manage("GET", base).json()["value"]) == 19
    assert manage("GET", f"{base}/nr3").json()["properties"]["subject"] == "other"
    assert manage("GET", f"{base}/nr0").status_code == 404


def test_what_is_assigned_is_listed_and_taken_away(manage: Management) -> None:
    """Assignments are listed by principal and deleted; the same role twice, or an unknown principal, is refused."""
    somebody = manage.azure.settings.cluster
    manage.give(somebody, "Reader", manage.group)
    listing = f"{manage.group}/providers/Microsoft.Authorization/roleAssignments"
    url = f"{ARM}{listing}{VERSION}&$filter=principalId eq '{somebody.object_id}'"
    found = manage.send("GET", url, manage.token).json()["value"]
    assert [one["properties"]["scope"] for one in found] == [manage.group]
    body = {
        "properties": {
            "principalId": somebody.object_id,
            "roleDefinitionId": found[0]["properties"]["roleDefinitionId"],
        }
    }
    again = manage("PUT", f"{listing}/{uuid.uuid4()}", body)
    assert (again.status_code, manage.code(again)) == (409, "RoleAssignmentExists")
    body["properties"]["principalId"] = str(uuid.uuid4())
    assert manage.code(manage("PUT", f"{listing}/{uuid.uuid4()}", body)) == "PrincipalNotFound"
    assert manage("DELETE", found[0]["id"]).status_code == 200
    assert manage("DELETE", found[0]["id"]).status_code == 204


def test_a_role_assignment_written_again_stays_as_it_is(manage: Management) -> None:
    """A PUT under a name that is there succeeds with the same content; scope, principal and role never change."""
    somebody, name = manage.azure.settings.cluster.object_id, uuid.uuid4()
    definitions = "/providers/Microsoft.Authorization/roleDefinitions"
    reader = f"{definitions}/acdd72a7-3385-48ef-bd42-f606fba81ae7"
    listing = "providers/Microsoft.Authorization/roleAssignments"

    def put(role: str = reader, principal: str = somebody, scope: str = manage.group) -> httpx2.Response:
        properties = {"principalId": principal, "roleDefinitionId": role}
        return manage("PUT", f"{scope}/{listing}/{name}", {"properties": properties})

    first = put()
    again = put()
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    for change in (
        put(role=f"{definitions}/b24988ac-6180-42a0-ab88-20f7382dd24c"),
        put(principal=manage.azure.settings.owner.object_id),
        put(scope=f"/subscriptions/{manage.azure.settings.subscription_id}"),
    ):
        assert (change.status_code, manage.code(change)) == (400, "RoleAssignmentUpdateNotPermitted")
    assert manage("GET", f"{manage.group}/{listing}/{name}").json() == first.json()
