"""The real azure-cli manages the lab's subscription: resource providers, groups, lists of resources, templates."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from interop.stage import ROOT, Record, Stage
from interop.test_az import VERSION, WAYS, Az, signed_in

TEMPLATES = ROOT / "tests/interop/templates"
pytestmark = pytest.mark.timeout(900)

SUBSCRIPTION = """
az provider register -n Microsoft.Network
network = az provider show -n Microsoft.Network
az provider unregister -n Microsoft.Network
providers = az provider list --query "[?registrationState=='Registered'].namespace"
locations = az account list-locations --query "[].name"
az group create -n managed -l westeurope --tags env=test
group = az group update -n managed --set tags.env=prod
exists = az group exists -n managed
groups = az group list --tag env=prod --query "[].name"
az identity create -g managed -n tagged --tags env=test
tagged = az resource list --tag env=test --query "[].name"
typed = az resource list -g managed --resource-type Microsoft.ManagedIdentity/userAssignedIdentities --query "[].name"
resource = az resource show -g managed -n tagged --resource-type Microsoft.ManagedIdentity/userAssignedIdentities
az group delete -n managed --yes
absent = az group exists -n managed
"""

DEPLOYMENT = """
az group create -n deployed -l westeurope
validation = az deployment group validate -g deployed -n main -f {template} -p name=shop secret=s3cret
preview = az deployment group what-if -g deployed -n main -f {template} -p name=shop secret=s3cret --no-pretty-print
deployment = az deployment group create -g deployed -n main -f {template} -p name=shop secret=s3cret
operations = az deployment operation group list -g deployed -n main
identities = az identity federated-credential list -g deployed --identity-name shop --query "[].name"
deployments = az deployment group list -g deployed --query "[].name"
az deployment group delete -g deployed -n identity
"""

GROUPS = """
az group create -n people -l westeurope
identity = az identity create -g people -n member
user = az ad user create --display-name Ada --user-principal-name ada@lab.test --password not-a-real-one
group = az ad group create --display-name team --mail-nickname team
"""

MEMBERS = """
az ad group member add -g team --member-id {user}
az ad group member add -g team --member-id {principal}
members = az ad group member list -g team --query "[].id"
member = az ad group member check -g team --member-id {principal}
groups = az ad user get-member-groups --id ada@lab.test --query "[].id"
az role assignment create --role Reader --assignee-object-id {team} --assignee-principal-type Group --scope {people}
roles = az role assignment list --assignee {principal} --include-groups --scope {people} --query "[].principalId"
az ad group member remove -g team --member-id {principal}
left = az ad group member list -g team --query "[].id"
"""

AS_A_USER = """
account = az account show
me = az ad signed-in-user show
people = az group show -n people
"""

SIGN_IN = """
import base64, json
from azure.identity import UsernamePasswordCredential
who = {"username": "ada@lab.test", "password": "not-a-real-one"}
credential = UsernamePasswordCredential("04b07795-8ddb-461a-bbee-02f9e1bf7b46", **who)
token = credential.get_token("https://vault.azure.net/.default").token
print(json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["upn"])
"""


@pytest.fixture(scope="module")
def az(stage: Stage, client: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Az:
    """azure-cli in the user's shell, signed in as the owner of the subscription."""
    return signed_in(stage, client("az"), WAYS[1], tmp_path_factory.mktemp("az"))


def test_a_subscription_is_managed(az: Az, record: Record) -> None:
    """Providers are registered, regions listed, groups tagged and found, resources listed by tag and by type."""
    record("azure-cli, on the host", VERSION, "provider, account list-locations, group, resource list and show")
    az.type(SUBSCRIPTION)
    seen = az.seen
    assert seen["network"]["registrationState"] == "Registered"
    assert {"Microsoft.KeyVault", "Microsoft.Resources"} <= set(seen["providers"])
    assert "Microsoft.Network" not in seen["providers"]
    assert "westeurope" in seen["locations"]
    assert seen["group"]["id"].endswith("/resourceGroups/managed")
    assert (seen["groups"], seen["exists"], seen["absent"]) == (["managed"], True, False)
    assert (seen["tagged"], seen["typed"]) == (["tagged"], ["tagged"])
    assert seen["resource"]["properties"]["clientId"]


def test_a_template_is_deployed(az: Az, record: Record) -> None:
    """azure-cli validates, previews and deploys a template with a module, and shows Azure's own errors."""
    record("azure-cli, on the host", VERSION, "deployment group create, validate, what-if, list, delete: a template")
    az.ids["template"] = str(TEMPLATES / "main.json")
    az.type(DEPLOYMENT)
    seen = az.seen
    assert seen["validation"]["properties"]["provisioningState"] == "Succeeded"
    assert {change["changeType"] for change in seen["preview"]["changes"]} == {"Create"}
    properties = seen["deployment"]["properties"]
    assert properties["provisioningState"] == "Succeeded"
    assert properties["outputs"]["vaultUri"]["value"].startswith("https://shop-")
    assert {one["properties"]["provisioningState"] for one in seen["operations"]} == {"Succeeded"}
    assert (sorted(seen["identities"]), sorted(seen["deployments"])) == (["blog", "shop"], ["identity", "main"])
    refused = az(f"az deployment group create -g deployed -n main -f {az.ids['template']} -p name=x secret=s")
    assert refused.status != 0
    assert "InvalidTemplate" in refused.err
    again = az(f"az deployment group create -g deployed -n main -f {az.ids['template']} -p name=shop secret=s")
    assert (again.status, json.loads(again.out)["properties"]["provisioningState"]) == (0, "Succeeded")
    az.type("az group delete -n deployed --yes")


def test_a_group_has_roles_for_its_members(az: Az, record: Record) -> None:
    """A user and an identity are members of a group: its role is listed as theirs, and the user signs in with it."""
    record(
        "azure-cli, on the host", VERSION, "ad user and ad group: members, a role for a group; login with a password"
    )
    az.ids["people"] = az.ids["group"].replace("/rg", "/people")
    az.type(GROUPS)
    group, user = az.seen["group"]["id"], az.seen["user"]["id"]
    az.ids |= {"team": group, "user": user}
    az.type(MEMBERS)
    seen = az.seen
    assert sorted(seen["members"]) == sorted([user, az.ids["principal"]])
    assert (seen["member"]["value"], seen["groups"]) == (True, [group])
    assert seen["roles"] == [group]
    assert seen["left"] == [user]
    as_ada = dataclasses.replace(az, configuration="ada", seen={})
    as_ada.json("az login -u ada@lab.test -p not-a-real-one")
    as_ada.type(AS_A_USER)
    assert as_ada.seen["account"]["user"] == {"name": "ada@lab.test", "type": "user"}
    assert (as_ada.seen["me"]["id"], as_ada.seen["people"]["name"]) == (user, "people")
    refused = as_ada("az group create -n ours -l westeurope")
    assert (refused.status != 0, "'ada@lab.test'" in refused.err) == (True, True)
    wrong = as_ada("az login -u ada@lab.test -p wrong")
    assert (wrong.status != 0, "AADSTS50126" in wrong.err) == (True, True)
    secret = az.run(f"{sys.executable} -W ignore -c '{SIGN_IN}'")
    assert (secret.status, secret.out.strip()) == (0, "ada@lab.test"), secret.err
    az.type("az ad group delete -g team\naz ad user delete --id ada@lab.test\naz group delete -n people --yes")
    refused = az("az ad signed-in-user show")
    assert refused.status != 0
    assert "delegated" in refused.err
