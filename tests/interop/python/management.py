"""Azure's management libraries as their users have them, against whatever answers under ARM's name.

Signs in with the environment's service principal (AZURE_CLIENT_ID, AZURE_CLIENT_SECRET, AZURE_TENANT_ID) and prints
what it saw as one line of JSON. Needs a group, and an identity and a VM's name to work with, in the environment.
"""

import json
import os
import uuid
from importlib.metadata import version

from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.identity import ClientSecretCredential, EnvironmentCredential
from azure.mgmt.authorization import AuthorizationManagementClient
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.msi import ManagedServiceIdentityClient

SUBSCRIPTION = os.environ["AZURE_SUBSCRIPTION_ID"]
GROUP, IDENTITY, MACHINE = (os.environ[name] for name in ("GROUP", "IDENTITY", "MACHINE"))
PACKAGES = ("azure-mgmt-authorization", "azure-mgmt-compute", "azure-mgmt-msi")


def main() -> None:
    """Run all steps once, and print what the libraries returned."""
    credential = EnvironmentCredential()
    said: dict[str, object] = {"versions": {name: version(name) for name in PACKAGES}}
    identities = ManagedServiceIdentityClient(credential, SUBSCRIPTION)
    made = identities.user_assigned_identities.create_or_update(GROUP, IDENTITY, {"location": "westeurope"})
    listed = identities.user_assigned_identities.list_by_resource_group(GROUP)
    said["identities"] = [one.name for one in listed]
    said["roles"] = assign(AuthorizationManagementClient(credential, SUBSCRIPTION), made)
    compute = ComputeManagementClient(credential, SUBSCRIPTION, polling_interval=1)
    said["machine"] = change(compute, made.id)
    said["missing"] = missing(compute)
    said["refused"] = refused(made.id)
    print(json.dumps(said))


def assign(authorization: AuthorizationManagementClient, made: object) -> list[str]:
    """Give the identity the role Reader on the group; return the roles that it then has on the group."""
    scope = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"
    reader = next(iter(authorization.role_definitions.list(scope, filter="roleName eq 'Reader'")))
    parameters = {
        "role_definition_id": reader.id,
        "principal_id": made.principal_id,  # type: ignore[attr-defined]
        "principal_type": "ServicePrincipal",
    }
    authorization.role_assignments.create(scope, str(uuid.uuid4()), parameters)
    condition = f"principalId eq '{made.principal_id}'"  # type: ignore[attr-defined]
    found = authorization.role_assignments.list_for_scope(scope, filter=condition)
    definitions = {one.id: one.role_name for one in authorization.role_definitions.list(scope)}
    return [definitions[one.role_definition_id] for one in found]


def change(compute: ComputeManagementClient, identity: str) -> list[list[str]]:
    """Create a VM, assign the identity to it and remove it again; return the VM's identities after each step."""
    compute.virtual_machines.begin_create_or_update(GROUP, MACHINE, {"location": "westeurope"}).result()
    carried = []
    given: tuple[dict[str, str] | None, ...] = ({}, None)
    for value in given:
        body = {"identity": {"type": "UserAssigned", "userAssignedIdentities": {identity: value}}}
        compute.virtual_machines.begin_update(GROUP, MACHINE, body).result()
        shown = compute.virtual_machines.get(GROUP, MACHINE).identity
        carried.append(list((shown.user_assigned_identities if shown else None) or {}))
    return carried


def missing(compute: ComputeManagementClient) -> str:
    """Return the type and code of the error for a missing machine."""
    try:
        compute.virtual_machines.get(GROUP, "nowhere")
    except ResourceNotFoundError as error:
        return f"{type(error).__name__} {error.error.code if error.error else error}"
    return ""


def refused(identity: str) -> str:
    """Return the error that the cluster's principal gets when it may not assign an identity."""
    names = ("AZURE_TENANT_ID", "CLUSTER_CLIENT_ID", "CLUSTER_CLIENT_SECRET")
    credential = ClientSecretCredential(*(os.environ[name] for name in names))
    cluster = ComputeManagementClient(credential, SUBSCRIPTION)
    body = {"identity": {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}}}
    try:
        where = os.environ["NODE_GROUP"], os.environ["SCALE_SET"]
        cluster.virtual_machine_scale_sets.begin_update(*where, body).result()
    except HttpResponseError as error:
        return f"{error.status_code} {error.error.code if error.error else error}"
    return ""


if __name__ == "__main__":
    main()
