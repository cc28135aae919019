"""The lab's administrator: the requests that the walk-through's `az` commands make, sent to the lab's Azure.

Each method stands for one command and sends what azure-cli 2.91 sends for it. It signs in as the service principal that
owns the lab's subscription and goes through the lab's proxy, as `az` would.
"""

import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import httpx2

from podidentity.errors import LabError
from podidentity_lab.azure import roles

ARM = "https://management.azure.com"
GRAPH = "https://graph.microsoft.com"
LOGIN = "https://login.microsoftonline.com"
ROLES = {role.name: role_id for role_id, role in roles.ROLES.items()}
COMPUTE_VERSION = "2022-08-01"
CREDENTIAL_VERSION = "2025-01-31-preview"
EXCHANGE_AUDIENCE = "api://AzureADTokenExchange"
PATIENCE_SECONDS = 60.0
AGAIN_SECONDS = 0.2
Json = dict[str, Any]


def once_free(change: Callable[[], object]) -> None:
    """Call `change`, again for as long as ARM refuses it because MIC is changing the same machine."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            change()
        except LabError as error:
            if "Another change of" not in str(error) or time.monotonic() > ends:
                raise
            time.sleep(AGAIN_SECONDS)
        else:
            return


class Admin:
    """ARM, Graph and Key Vault, as the owner of the subscription."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.subscription = environment["LAB_SUBSCRIPTION_ID"]
        trust = ssl.create_default_context(cafile=environment["SSL_CERT_FILE"])
        self._http = httpx2.Client(proxy=environment["HTTPS_PROXY"], verify=trust, trust_env=False, timeout=30)
        self._tokens: dict[str, str] = {}

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def create_group(self, name: str, location: str) -> Json:
        """`az group create`."""
        return self._arm("PUT", self.group(name), "2024-11-01", {"location": location})

    def create_role_vault(self, group: str, name: str, location: str) -> Json:
        """`az keyvault create`: whoever has a role may do something, and nobody has one yet."""
        return self._create_vault(group, name, location, [], by_roles=True)

    def create_vault(self, group: str, name: str, location: str) -> Json:
        """`az keyvault create --enable-rbac-authorization false`: the creator may do everything, nobody else."""
        permissions = {"keys": ["all"], "secrets": ["all"], "certificates": ["all"], "storage": ["all"]}
        policies = [self._policy(self.owner_principal(), permissions)]
        return self._create_vault(group, name, location, policies, by_roles=False)

    def _create_vault(self, group: str, name: str, location: str, policies: list[Json], *, by_roles: bool) -> Json:
        properties = {
            "tenantId": self._environment["LAB_TENANT_ID"],
            "sku": {"name": "standard", "family": "A"},
            "accessPolicies": policies,
            "enableRbacAuthorization": by_roles,
        }
        body = {"location": location, "properties": properties}
        return self._arm("PUT", self.vault(group, name), "2026-02-01", body)

    def set_secret(self, vault: str, name: str, value: str) -> Json:
        """`az keyvault secret set`."""
        url = f"https://{vault}.vault.azure.net/secrets/{name}?api-version=7.4"
        return self._send("PUT", url, "https://vault.azure.net/.default", {"value": value})

    def create_key(self, vault: str, name: str, kind: str) -> Json:
        """`az keyvault key create`; `kind` is RSA and a size, `RSA-2048`, or an EC curve, `P-256`."""
        url = f"https://{vault}.vault.azure.net/keys/{name}/create?api-version=7.4"
        family, _, size = kind.partition("-")
        body = {"kty": "RSA", "key_size": int(size)} if family == "RSA" else {"kty": "EC", "crv": kind}
        return self._send("POST", url, "https://vault.azure.net/.default", body)

    def create_certificate(self, vault: str, name: str, subject: str) -> Json:
        """`az keyvault certificate create`: self-signed, RSA of 2048 bits, valid for a year; `subject` is `CN=...`."""
        url = f"https://{vault}.vault.azure.net/certificates/{name}/create?api-version=7.4"
        policy = {
            "issuer": {"name": "Self"},
            "key_props": {"kty": "RSA", "key_size": 2048, "exportable": True, "reuse_key": False},
            "secret_props": {"contentType": "application/x-pkcs12"},
            "x509_props": {"subject": subject, "validity_months": 12},
        }
        return self._send("POST", url, "https://vault.azure.net/.default", {"policy": policy})

    def create_account(self, group: str, name: str, location: str) -> Json:
        """`az storage account create`."""
        body = {"location": location, "kind": "StorageV2", "sku": {"name": "Standard_LRS"}}
        return self._arm("PUT", self.account(group, name), "2024-01-01", body)

    def create_container(self, group: str, account: str, name: str) -> Json:
        """`az storage container create`, through ARM: that takes no role on data."""
        path = f"{self.account(group, account)}/blobServices/default/containers/{name}"
        return self._arm("PUT", path, "2024-01-01", {"properties": {}})

    def upload_blob(self, account: str, name: str, text: str) -> None:
        """`az storage blob upload --auth-mode login`; `name` is `CONTAINER/BLOB`. It takes a role on data."""
        url = httpx2.URL(f"https://{account}.blob.core.windows.net", path=f"/{name}")
        headers = {
            "Authorization": f"Bearer {self._token('https://storage.azure.com/.default')}",
            "Content-Type": "text/plain; charset=utf-8",
            "x-ms-blob-type": "BlockBlob",
            "x-ms-version": "2024-11-04",
        }
        _check("PUT", str(url), self._ask("PUT", str(url), content=text.encode(), headers=headers))

    def account(self, group: str, name: str) -> str:
        """Return the ARM ID of a storage account."""
        return f"{self.group(group)}/providers/Microsoft.Storage/storageAccounts/{name}"

    def create_identity(self, group: str, name: str, location: str) -> Json:
        """`az identity create`."""
        return self._arm("PUT", self.identity(group, name), "2025-05-31-preview", {"location": location})

    def create_federated_credential(self, group: str, identity: str, name: str, issuer: str, subject: str) -> Json:
        """`az identity federated-credential create`: lets `subject` of `issuer` be exchanged for the identity."""
        properties = {"issuer": issuer, "subject": subject, "audiences": [EXCHANGE_AUDIENCE]}
        path = f"{self.identity(group, identity)}/federatedIdentityCredentials/{name}"
        return self._arm("PUT", path, CREDENTIAL_VERSION, {"properties": properties})

    def create_application(self, name: str) -> Json:
        """`az ad app create` and `az ad sp create`."""
        application = self._send("POST", f"{GRAPH}/v1.0/applications", f"{GRAPH}/.default", {"displayName": name})
        principal = {"appId": application["appId"]}
        self._send("POST", f"{GRAPH}/v1.0/servicePrincipals", f"{GRAPH}/.default", principal)
        return application

    def federate_application(self, application: str, name: str, issuer: str, subject: str) -> Json:
        """`az ad app federated-credential create`; `application` is its object ID."""
        body = {"name": name, "issuer": issuer, "subject": subject, "audiences": [EXCHANGE_AUDIENCE]}
        url = f"{GRAPH}/v1.0/applications/{application}/federatedIdentityCredentials"
        return self._send("POST", url, f"{GRAPH}/.default", body)

    def create_user(self, name: str, display_name: str, password: str) -> Json:
        """`az ad user create`; `name` is NAME@DOMAIN. Without a password the user cannot sign in."""
        body = {
            "accountEnabled": True,
            "displayName": display_name,
            "mailNickname": name.partition("@")[0],
            "passwordProfile": {"password": password},
            "userPrincipalName": name,
        }
        return self._send("POST", f"{GRAPH}/v1.0/users", f"{GRAPH}/.default", body)

    def create_directory_group(self, name: str) -> Json:
        """`az ad group create`."""
        nickname = "".join(letter for letter in name if letter.isalnum()) or "group"
        body = {"displayName": name, "mailNickname": nickname, "mailEnabled": False, "securityEnabled": True}
        return self._send("POST", f"{GRAPH}/v1.0/groups", f"{GRAPH}/.default", body)

    def add_member(self, group: str, member: str) -> None:
        """`az ad group member add`; both are object IDs."""
        reference = {"@odata.id": f"{GRAPH}/v1.0/directoryObjects/{member}"}
        self._send("POST", f"{GRAPH}/v1.0/groups/{group}/members/$ref", f"{GRAPH}/.default", reference)

    def assign_role(self, role: str, principal: str, scope: str) -> Json:
        """`az role assignment create`; `principal` is an object ID of an application or identity."""
        return self.assign_role_to("ServicePrincipal", role, principal, scope)

    def assign_role_to(self, kind: str, role: str, principal: str, scope: str) -> Json:
        """`az role assignment create --assignee-principal-type`; `kind` is ServicePrincipal, User or Group."""
        definition = f"{self._root}/providers/Microsoft.Authorization/roleDefinitions/{ROLES[role]}"
        properties = {
            "principalId": principal,
            "principalType": kind,
            "roleDefinitionId": definition,
        }
        path = f"{scope}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
        return self._arm("PUT", path, "2022-04-01", {"properties": properties})

    def delete_role_assignment(self, path: str) -> None:
        """`az role assignment delete`; `path` is the assignment's ID."""
        self._arm("DELETE", path, "2022-04-01")

    def set_policy(self, group: str, vault: str, client_id: str) -> Json:
        """`az keyvault set-policy --secret-permissions get list --spn`."""
        current = self._arm("GET", self.vault(group, vault), "2026-02-01")
        policy = self._policy(self._object_id(client_id), {"secrets": ["get", "list"]})
        current["properties"]["accessPolicies"].append(policy)
        return self._arm("PUT", self.vault(group, vault), "2026-02-01", current)

    def create_scale_set(self, group: str, name: str, location: str) -> Json:
        """`az vmss create`, without networks and disks, which the lab does not have."""
        return self._arm("PUT", self.scale_set(group, name), COMPUTE_VERSION, {"location": location, "properties": {}})

    def assign_to_scale_set(self, group: str, name: str, identity: str) -> None:
        """`az vmss identity assign`: adds an identity to those that are there."""
        body = {"identity": {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}}}
        once_free(lambda: self._arm("PATCH", self.scale_set(group, name), COMPUTE_VERSION, body))

    def scale_set_identities(self, group: str, name: str) -> tuple[str, ...]:
        """Return the resource IDs of the identities that a scale set carries."""
        identity = self._arm("GET", self.scale_set(group, name), COMPUTE_VERSION).get("identity") or {}
        return tuple(identity.get("userAssignedIdentities") or ())

    def scale_set(self, group: str, name: str) -> str:
        """Return the path of a scale set."""
        return f"{self.group(group)}/providers/Microsoft.Compute/virtualMachineScaleSets/{name}"

    def cluster_principal(self) -> str:
        """Return the object ID of the cluster's service principal, which MIC signs in as."""
        return self._object_id(self._environment["LAB_CLUSTER_CLIENT_ID"])

    def owner_principal(self) -> str:
        """The object ID of the subscription's owner, who this is."""
        return self._object_id(self._environment["LAB_OWNER_CLIENT_ID"])

    def group(self, name: str) -> str:
        """Return the path of a resource group."""
        return f"{self._root}/resourceGroups/{name}"

    def vault(self, group: str, name: str) -> str:
        """Return the path of a vault."""
        return f"{self.group(group)}/providers/Microsoft.KeyVault/vaults/{name}"

    def identity(self, group: str, name: str) -> str:
        """Return the path of a user-assigned identity."""
        return f"{self.group(group)}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"

    @property
    def _root(self) -> str:
        return f"/subscriptions/{self.subscription}"

    def _policy(self, object_id: str, permissions: Json) -> Json:
        return {"tenantId": self._environment["LAB_TENANT_ID"], "objectId": object_id, "permissions": permissions}

    def _object_id(self, client_id: str) -> str:
        query = f"servicePrincipalNames/any(c:c eq '{client_id}')"
        url = httpx2.URL("https://graph.microsoft.com/v1.0/servicePrincipals", params={"$filter": query})
        answer = self._send("GET", str(url), "https://graph.microsoft.com/.default")
        return str(answer["value"][0]["id"])

    def _arm(self, method: str, path: str, version: str, body: Json | None = None) -> Json:
        return self._send(method, f"{ARM}{path}?api-version={version}", f"{ARM}//.default", body)

    def _send(self, method: str, url: str, scope: str, body: Json | None = None) -> Json:
        headers = {"Authorization": f"Bearer {self._token(scope)}"}
        answer = self._ask(method, url, json=body, headers=headers)
        _check(method, url, answer)
        result: Json = answer.json() if answer.content else {}
        return result

    def _ask(self, method: str, url: str, **content: Any) -> httpx2.Response:
        try:
            return self._http.request(method, url, **content)
        except httpx2.HTTPError as error:
            raise LabError(f"{method} {url.split('?', maxsplit=1)[0]} got no answer: {error}") from None

    def _token(self, scope: str) -> str:
        if scope not in self._tokens:
            form = {
                "grant_type": "client_credentials",
                "client_id": self._environment["LAB_OWNER_CLIENT_ID"],
                "client_secret": self._environment["LAB_OWNER_CLIENT_SECRET"],
                "scope": scope,
            }
            url = f"{LOGIN}/{self._environment['LAB_TENANT_ID']}/oauth2/v2.0/token"
            answer = self._ask("POST", url, data=form)
            if answer.is_error:
                raise LabError(f"signing in as the lab's owner was answered {answer.status_code}: {answer.text[:300]}")
            self._tokens[scope] = str(answer.json()["access_token"])
        return self._tokens[scope]


def _check(method: str, url: str, answer: httpx2.Response) -> None:
    """Raise `LabError` for a refusal."""
    if answer.is_error:
        raise LabError(f"{method} {url.split('?', maxsplit=1)[0]} answered {answer.status_code}: {answer.text[:300]}")
