"""A deployed template has the effect of the same requests sent one by one, with the rights of whoever deploys it."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from daemons.lab_azure.management import SCOPE, Management
from podidentity_lab.azure import Azure

TEMPLATE = json.loads((Path(__file__).parents[2] / "interop" / "templates" / "main.json").read_text())
IDENTITIES = "Microsoft.ManagedIdentity/userAssignedIdentities"
SUPPLIED = {"name": {"value": "shop"}, "secret": {"value": "s3cret"}}


def deploy(
    manage: Management, template: Any, parameters: Any = None, *, scope: str = "", verb: str = "", **properties: Any
) -> httpx2.Response:
    """Deploy, validate or preview a template as `main`; at the group unless another scope is named."""
    path = f"{scope or manage.group}/providers/Microsoft.Resources/deployments/main{verb}"
    body: dict[str, Any] = {
        "properties": {"template": template, "parameters": parameters or {}, "mode": "Incremental", **properties}
    }
    if scope:
        body["location"] = "eastus"
    return manage("POST" if verb else "PUT", path, body)


def state_of(manage: Management, scope: str = "") -> dict[str, Any]:
    """Return the properties of the deployment `main`."""
    path = f"{scope or manage.group}/providers/Microsoft.Resources/deployments/main"
    properties: dict[str, Any] = manage("GET", path).json()["properties"]
    return properties


def identity(name: str, **fields: Any) -> dict[str, Any]:
    """Return a template's resource for an identity."""
    return {"type": IDENTITIES, "apiVersion": "2023-01-31", "name": name, "location": "eastus", **fields}


def template(*resources: Any, **fields: Any) -> dict[str, Any]:
    """Return a template of these resources."""
    return {"contentVersion": "1.0.0.0", "resources": list(resources), **fields}


def test_a_template_with_a_module_is_deployed(manage: Management, azure: Azure) -> None:
    """Vault, secret, identity, credentials and role are made in the order of their dependencies; saving keeps all."""
    answer = deploy(manage, TEMPLATE, SUPPLIED)
    assert answer.status_code == 201, answer.text
    assert manage("GET", answer.headers["azure-asyncoperation"].split(".com", 1)[1].split("?")[0]).json() == {
        "status": "Succeeded"
    }
    properties = state_of(manage)
    vault = next(iter(azure.state.vaults.values()))
    assert properties["outputs"]["vaultUri"] == {"type": "String", "value": vault["properties"]["vaultUri"]}
    assert properties["outputs"]["production"]["value"] is False
    assert properties["parameters"]["secret"] == {"type": "SecureString"}
    assert azure.state.secrets[f"{vault['name']}/greeting"][0].value == "s3cret"
    principal = azure.state.identity_principal(properties["outputs"]["identity"]["value"])
    assert principal is not None
    assert {one.subject for one in principal.federated.values()} == {
        "system:serviceaccount:shop:web",
        "system:serviceaccount:blog:web",
    }
    assert [role.scope for role in azure.state.roles.values() if role.principal_id == principal.object_id] == [
        vault["id"]
    ]
    base = f"{manage.group}/providers/Microsoft.Resources/deployments"
    operations = manage("GET", f"{base}/main/operations").json()["value"]
    assert [one["properties"]["targetResource"]["resourceName"] for one in operations][-1].count("-") == 4
    assert {one["properties"]["provisioningState"] for one in operations} == {"Succeeded"}
    shown = manage("GET", f"{base}/main/operations/{operations[0]['operationId']}").json()
    assert shown == operations[0]
    assert {one["name"] for one in manage("GET", base).json()["value"]} == {"main", "identity"}
    assert manage("POST", f"{base}/main/exportTemplate").json()["template"] == TEMPLATE
    assert Azure.restore(azure.save()).state.deployments == azure.state.deployments
    assert "s3cret" not in str(azure.state.deployments)
    assert deploy(manage, TEMPLATE, SUPPLIED).status_code == 200
    assert state_of(manage)["provisioningState"] == "Succeeded"  # the role assignment has the same name and content
    assert manage("DELETE", f"{base}/main").status_code == 204
    assert manage.code(manage("GET", f"{base}/main")) == "DeploymentNotFound"
    assert manage("HEAD", f"{base}/main").status_code == 404
    assert manage("HEAD", f"{base}/identity").status_code == 204
    assert manage.code(manage("POST", f"{base}/identity/cancel")) == "DeploymentCannotBeCancelled"
    assert manage("DELETE", manage.group).status_code == 200
    assert azure.state.deployments == {}


def test_validation_and_what_if_make_nothing(manage: Management, azure: Azure) -> None:
    """Both answer with what a deployment would create, and create nothing."""
    validated = deploy(manage, TEMPLATE, SUPPLIED, verb="/validate").json()["properties"]
    assert (validated["provisioningState"], len(validated["validatedResources"])) == ("Succeeded", 4)
    changes = deploy(manage, TEMPLATE, SUPPLIED, verb="/whatIf").json()["properties"]["changes"]
    assert {change["changeType"] for change in changes} == {"Create"}
    assert (azure.state.identities, azure.state.deployments) == ({}, {})
    manage.identity("one")
    changes = deploy(manage, template(identity("one")), verb="/whatIf").json()["properties"]["changes"]
    assert [change["changeType"] for change in changes] == ["Deploy"]


def test_what_is_refused_ends_the_deployment(manage: Management, azure: Azure) -> None:
    """Resources before the refused one stay, those after it are not made; the error is the resource's own."""
    wrong = template(identity("one"), identity("x"), identity("three", dependsOn=["x"]))
    deploy(manage, wrong)
    properties = state_of(manage)
    assert (properties["provisioningState"], properties["error"]["code"]) == ("Failed", "DeploymentFailed")
    assert properties["error"]["details"][0]["code"] == "InvalidResourceName"
    assert [one["name"] for one in azure.state.identities.values()] == ["one"]
    path = f"{manage.group}/providers/Microsoft.Resources/deployments/main"
    status = manage("GET", f"{path}/operationStatuses/1").json()
    assert (status["status"], status["error"]["code"]) == ("Failed", "DeploymentFailed")
    operations = manage("GET", f"{path.replace('/providers/Microsoft.Resources', '')}/operations").json()["value"]
    assert [one["properties"]["provisioningState"] for one in operations] == ["Succeeded", "Failed"]
    nested = {"type": "Microsoft.Resources/deployments", "apiVersion": "2022-09-01", "name": "inner"}
    deploy(manage, template({**nested, "properties": {"mode": "Incremental", "template": template(identity("y"))}}))
    inner = state_of(manage)["error"]["details"][0]
    assert (inner["code"], inner["details"][0]["code"]) == ("DeploymentFailed", "InvalidResourceName")
    outputs = {"absent": {"type": "string", "value": f"[reference(resourceId('{IDENTITIES}', 'absent')).clientId]"}}
    deploy(manage, template(identity("one"), outputs=outputs))
    assert "was not found" in state_of(manage)["error"]["message"]
    broken = template(
        {**identity("two"), "tags": [1]},
        {
            "type": f"{IDENTITIES}/federatedIdentityCredentials",
            "apiVersion": "2023-01-31",
            "name": "two/fed",
            "dependsOn": ["two"],
        },
    )
    deploy(manage, broken)
    assert state_of(manage)["error"]["details"][0]["code"] == "InvalidRequestContent"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (template(identity("[nothing()]")), "The template function 'nothing' is not valid"),
        (template(identity("[reference('x')]")), "The template function 'reference' is not valid"),
        (
            template({**identity("one"), "type": "Microsoft.Web/sites"}),
            "is not one that the lab can deploy",
        ),
        (template({"type": IDENTITIES, "name": "one"}), "it has no 'apiVersion'"),
        (template(identity("one", dependsOn=["two"])), "'two' is not defined in the template"),
        (template(identity("one"), identity("one")), "more than once"),
        (
            template(identity("one", dependsOn=["two"]), identity("two", dependsOn=["one"])),
            "Circular dependency detected on resource: '/subs",
        ),
        (template(identity("one"), parameters={"a": {"type": "string"}}), "'a' is not provided"),
        (template(identity("one"), parameters={"a": {"type": "int", "defaultValue": "1"}}), "must be a int"),
        (
            template(identity("one"), parameters={"a": {"defaultValue": 1, "allowedValues": [2]}}),
            "is not part of the allowed value(s): '2'",
        ),
        (template(identity("one"), parameters={"a": {"defaultValue": "", "minLength": 1}}), "not from 1 to 0"),
        (template(identity("[variables('a')]"), variables={"a": "[variables('a')]"}), "depends on itself"),
        (template(identity("[variables('a')]")), "variable 'a' is not found"),
        (template(identity("[parameters('a')]")), "parameter 'a' is not found"),
        (template(identity("a/b")), "incorrect segment lengths"),
        ({}, "it has no 'resources'"),
        (template("one"), "a resource must be an object"),
    ],
)
def test_a_wrong_template_is_refused_before_anything_is_made(
    manage: Management, azure: Azure, content: Any, sentence: str
) -> None:
    """A deployment or validation of it gets InvalidTemplate and one sentence."""
    for verb in ("", "/validate"):
        answer = deploy(manage, content, verb=verb)
        assert (answer.status_code, manage.code(answer)) == (400, "InvalidTemplate")
        assert sentence in answer.json()["error"]["message"]
    assert (azure.state.identities, azure.state.deployments) == ({}, {})


def test_other_requests_are_refused_with_their_own_codes(manage: Management) -> None:
    """An unknown parameter, a linked template, a bad name, a missing location and a missing group are refused."""
    answer = deploy(manage, template(), {"x": {"value": 1}})
    assert "not present in the original template" in answer.json()["error"]["message"]
    reference = {"reference": {"keyVault": {"id": "x"}, "secretName": "y"}}
    answer = deploy(manage, template(parameters={"x": {"type": "string"}}), {"x": reference})
    assert "refers to a secret of a vault" in answer.json()["error"]["message"]
    base = f"{manage.group}/providers/Microsoft.Resources/deployments"
    assert manage.code(manage("PUT", f"{base}/a", {"properties": {"templateLink": {}}})) == "InvalidDeployment"
    body: dict[str, Any] = {"properties": {"template": template()}}
    assert manage.code(manage("PUT", f"{base}/a%20b", body)) == "InvalidDeployment"
    at_subscription = f"{manage.subscription}/providers/Microsoft.Resources/deployments/a"
    assert manage.code(manage("PUT", at_subscription, body)) == "LocationRequired"
    elsewhere = base.replace("/rg/", "/nowhere/")
    assert manage.code(manage("PUT", f"{elsewhere}/a", body)) == "ResourceGroupNotFound"
    assert deploy(manage, template()).status_code == 201
    assert manage.code(manage("GET", f"{base}/main/elsewhere")) == "NotFound"


def test_who_may_not_write_a_resource_may_not_deploy_it(manage: Management, sign_in: Any) -> None:
    """A Contributor of the group may deploy identities, but no role assignments, as without a template."""
    somebody = manage.azure.settings.cluster
    mine = Management(manage.azure, manage.send, sign_in(SCOPE, somebody))
    assert mine.code(deploy(mine, template(identity("one")))) == "AuthorizationFailed"
    manage.give(somebody, "Contributor", manage.group)
    assert deploy(mine, template(identity("one"))).status_code == 201
    role = {"type": "Microsoft.Authorization/roleAssignments", "apiVersion": "2022-04-01", "name": "[guid('a')]"}
    answer = deploy(mine, template(identity("two"), {**role, "properties": {}}))
    assert (answer.status_code, mine.code(answer)) == (403, "InvalidTemplateDeployment")
    assert [one["name"] for one in manage.azure.state.identities.values()] == ["one"]


def test_a_subscriptions_template_makes_groups_and_what_is_in_them(manage: Management, azure: Azure) -> None:
    """A module with `resourceGroup` waits for its group; `reference` with 'Full' has all fields of a resource."""
    group = {
        "type": "Microsoft.Resources/resourceGroups",
        "apiVersion": "2021-04-01",
        "name": "made",
        "location": "eastus",
    }
    module = {
        "type": "Microsoft.Resources/deployments",
        "apiVersion": "2022-09-01",
        "name": "inner",
        "resourceGroup": "made",
        "dependsOn": ["[subscriptionResourceId('Microsoft.Resources/resourceGroups', 'made')]"],
        "properties": {
            "mode": "Incremental",
            "expressionEvaluationOptions": {"scope": "inner"},
            "template": template(identity("[resourceGroup().name]")),
        },
    }
    made = "subscriptionResourceId('Microsoft.Resources/resourceGroups', 'made')"
    outputs = {"place": {"type": "string", "value": f"[reference({made}, '2021-04-01', 'Full').location]"}}
    answer = deploy(manage, template(module, group, outputs=outputs), scope=manage.subscription)
    assert answer.status_code == 201, answer.text
    assert state_of(manage, manage.subscription)["outputs"] == {"place": {"type": "String", "value": "eastus"}}
    assert [one["id"] for one in azure.state.identities.values()] == [
        f"{manage.subscription}/resourceGroups/made/providers/{IDENTITIES}/made"
    ]


def test_symbolic_names_conditions_functions_and_loops(manage: Management, azure: Azure) -> None:
    """Language version 2.0, as Bicep writes it: labels, an existing resource, a user's function, loops."""
    manage.identity("there")
    content = {
        "languageVersion": "2.0",
        "functions": [
            {
                "namespace": "__bicep",
                "members": {
                    "named": {
                        "parameters": [{"name": "n", "type": "int"}],
                        "output": {"type": "string", "value": "[format('{0}-{1}', 'loop', parameters('n'))]"},
                    }
                },
            }
        ],
        "parameters": {
            "stamp": {"type": "string", "defaultValue": "[utcNow('yyyy-MM-dd')]"},
            "id": {"type": "string", "defaultValue": "[newGuid()]"},
            "none": {"type": "string", "nullable": True},
        },
        "variables": {"copy": [{"name": "numbers", "count": 2, "input": "[copyIndex('numbers', 1)]"}]},
        "resources": {
            "existing": {**identity("there"), "existing": True},
            "absent": identity("absent", condition="[not(equals(parameters('none'), null()))]"),
            "loop": {
                **identity("[__bicep.named(copyIndex())]", tags={"stamp": "[parameters('stamp')]"}),
                "copy": {"name": "loop", "count": "[length(variables('numbers'))]"},
                "dependsOn": ["absent", "tagged"],
            },
            "tagged": identity("tagged", tags={"of": "[reference('existing').clientId]"}),
        },
        "outputs": {
            "names": {"type": "array", "copy": {"count": 2, "input": "[__bicep.named(copyIndex())]"}},
            "hidden": {"type": "string", "condition": False, "value": "x"},
            "secret": {"type": "securestring", "value": "[parameters('id')]"},
            "none": {"type": "string", "nullable": True, "value": "[parameters('none')]"},
        },
    }
    assert deploy(manage, content).status_code == 201
    properties = state_of(manage)
    assert properties["provisioningState"] == "Succeeded", properties
    assert sorted(one["name"] for one in azure.state.identities.values()) == ["loop-0", "loop-1", "tagged", "there"]
    there, tagged = (
        azure.state.identities[f"{manage.group}/providers/{IDENTITIES}/{name}".lower()] for name in ("there", "tagged")
    )
    assert tagged["tags"] == {"of": there["properties"]["clientId"]}
    assert properties["outputs"] == {
        "names": {"type": "Array", "value": ["loop-0", "loop-1"]},
        "secret": {"type": "SecureString"},
        "none": {"type": "String", "value": None},
    }
    deploy(manage, template(parameters={"stamp": {"type": "string", "defaultValue": "[utcNow('s')]"}}))
    wrong = deploy(manage, template(parameters={"stamp": {"type": "string", "defaultValue": "[utcNow('s')]"}}))
    assert "The format 's' of utcNow" in wrong.json()["error"]["message"]


def test_complete_mode_deletes_what_the_template_lacks(manage: Management, azure: Azure) -> None:
    """It deletes in its own group only; a resource inside its parent's definition is created as a child."""
    manage.identity("old")
    child = {
        "type": "federatedIdentityCredentials",
        "apiVersion": "2023-01-31",
        "name": "fed",
        "dependsOn": ["[resourceId('Microsoft.ManagedIdentity/userAssignedIdentities', 'new')]"],
        "properties": {"issuer": "https://issuer.example", "subject": "s", "audiences": ["a"]},
    }
    deploy(manage, template(identity("new", resources=[child])), mode="Complete")
    assert state_of(manage)["provisioningState"] == "Succeeded", state_of(manage)
    assert [one["name"] for one in azure.state.identities.values()] == ["new"]
    assert [machine.id.rsplit("/", 1)[1] for machine in azure.state.machines.values()] == ["ss"]
    path = next(iter(azure.state.identities.values()))["id"]
    assert manage("GET", f"{path}/federatedIdentityCredentials/fed").json()["properties"]["subject"] == "s"


def test_secrets_in_arm_show_no_value(manage: Management) -> None:
    """ARM creates, shows and lists a vault's secrets without their values, and does not delete them."""
    vault = f"{manage.group}/providers/Microsoft.KeyVault/vaults/kv1"
    assert manage("PUT", vault, {"location": "eastus", "properties": {}}).status_code == 201
    body = {"properties": {"value": "s3cret", "contentType": "text/plain"}, "tags": {"a": "b"}}
    created = manage("PUT", f"{vault}/secrets/one", body)
    assert (created.status_code, "s3cret" in created.text) == (201, False)
    assert manage("PUT", f"{vault}/secrets/one", body).status_code == 200
    shown = manage("GET", f"{vault}/secrets/one").json()
    assert (shown["tags"], shown["properties"]["secretUri"]) == ({"a": "b"}, "https://kv1.vault.azure.net/secrets/one")
    assert [one["name"] for one in manage("GET", f"{vault}/secrets").json()["value"]] == ["one"]
    assert manage("DELETE", f"{vault}/secrets/one").status_code == 405
    assert manage.code(manage("GET", f"{vault}x/secrets/one")) == "ResourceNotFound"
