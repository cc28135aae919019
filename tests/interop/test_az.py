"""The real azure-cli accepts the lab as Azure, inside the lab and from the host's shell.

The commands are written as users type them: those of the walk-through, and those that show every request azure-cli
makes of ARM, Graph, Entra ID and Key Vault. `{...}` are the IDs that a user fills in.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from interop.stage import ROOT, VALUE, Done, Pod, Record, Stage
from waiting import until

Find = Callable[[str], Path]
pytestmark = pytest.mark.timeout(900)
WAYS = ("in a pod", "on the host")
VERSION = "2.91.0"

TRANSCRIPT = """
az group create -n rg -l eastus
az keyvault create -g rg -n labkv1 -l eastus --enable-rbac-authorization false
az keyvault secret set --vault-name labkv1 -n s1 --value hello
identity = az identity create -g rg -n demo -o json
az role assignment create --role Reader --assignee {principal} --scope {group}
az role assignment create --role Contributor --assignee {client} --scope {group}
az keyvault set-policy -n labkv1 --secret-permissions get list --spn {client}
az keyvault set-policy -n labkv1 --secret-permissions get list --object-id {principal}
az role assignment create --role 'Managed Identity Operator' --assignee {principal} --scope {demo}
az role assignment create --role 'Virtual Machine Contributor' --assignee-object-id {principal} \
--assignee-principal-type ServicePrincipal --scope {demo}
roles = az role assignment list --assignee {principal} --all -o json
secret = az keyvault secret show --vault-name labkv1 -n s1
identities = az identity list -g rg
vault = az keyvault show -n labkv1
az rest --method put --url '{compute}/virtualMachines/vm0?api-version=2023-09-01' \
--body '{"location":"eastus","properties":{}}'
az vm identity assign -g rg -n vm0 --identities {demo}
vm = az vm identity show -g rg -n vm0
az vm identity remove -g rg -n vm0 --identities {demo}
az rest --method put --url '{compute}/virtualMachineScaleSets/vmss0?api-version=2023-09-01' \
--body '{"location":"eastus","properties":{},"sku":{"name":"Standard_DS2_v2","capacity":1}}'
az vmss identity assign -g rg -n vmss0 --identities {demo}
vmss = az vmss identity show -g rg -n vmss0
token = az account get-access-token --resource https://vault.azure.net
principal = az ad sp show --id {client}
"""

FURTHER = """
az vmss identity remove -g rg -n vmss0 --identities {demo}
az vm identity assign -g rg -n vm0
system = az vm identity show -g rg -n vm0
shown = az identity show -g rg -n demo
az identity federated-credential create -g rg --identity-name demo -n fed --issuer https://kubernetes.default.svc \
--subject system:serviceaccount:default:default --audiences api://AzureADTokenExchange
federated = az identity federated-credential list -g rg --identity-name demo
az identity federated-credential delete -g rg --identity-name demo -n fed --yes
az role assignment delete --assignee {principal} --role Contributor --scope {group}
left = az role assignment list --assignee {principal} --scope {group} -o json
az keyvault secret delete --vault-name labkv1 -n s1
az keyvault secret recover --vault-name labkv1 -n s1
az keyvault delete -n labkv1
deleted = az keyvault list-deleted
az keyvault recover -n labkv1
again = az keyvault secret show --vault-name labkv1 -n s1
"""

LAST = """
az identity delete -g rg -n demo
az group delete -n rg --yes
az keyvault purge -n labkv1
"""

WALKTHROUGH = """
az group create -n keyvault-aad-pod-identity-rg -l westeurope
az keyvault create -n keyvaultk8s -g keyvault-aad-pod-identity-rg -l westeurope --enable-rbac-authorization false
set = az keyvault secret set -n mySecret --vault-name keyvaultk8s --value MySuperSecretThatIDontWantToShareWithYou!
identity = az identity create -n keyvaultsampleidentity -g keyvault-aad-pod-identity-rg
az role assignment create --role "Reader" --assignee {principal} --scope {vault}
az keyvault set-policy -n keyvaultk8s --secret-permissions get list --spn {client}
az role assignment create --role "Managed Identity Operator" --assignee {cluster} --scope {sample}
"""

WALKTHROUGH_LAST = """
az group delete -n keyvault-aad-pod-identity-rg --yes
az keyvault purge -n keyvaultk8s
"""


@dataclass
class Az:
    """A shell with azure-cli in it, and the IDs to fill in."""

    run: Callable[[str], Done]
    ids: dict[str, str]
    directory: Path
    configuration: str = "one"
    home: Path = Path("/tmp")  # a pod has its own
    seen: dict[str, Any] = field(default_factory=dict)

    def __call__(self, command: str) -> Done:
        """Run one command in the shell."""
        settings = f"AZURE_CONFIG_DIR={self.home}/az-{self.configuration} AZURE_CORE_COLLECT_TELEMETRY=0"
        return self.run(f"export PATH={self.directory}/bin:$PATH {settings} HOME={self.home}; {command}")

    def json(self, command: str) -> Any:
        """Return a command's output, decoded; the command must succeed."""
        done = self(command)
        assert done.status == 0, f"{command}\n{done.out}\n{done.err}"
        return json.loads(done.out) if done.out.strip() else None

    def type(self, script: str) -> None:
        """Run a script's commands; keep what has a name in `seen`, and fill in an identity's IDs from then on."""
        for line in script.strip().splitlines():
            name, typed, command = line.partition("az ")
            for key, value in self.ids.items():
                command = command.replace(f"{{{key}}}", value)
            answer = self.json(f"{typed}{command}")
            if name:
                self.seen[name.removesuffix(" = ")] = answer
            if name == "identity = ":
                self.ids |= {"principal": answer["principalId"], "client": answer["clientId"]}

    def log_in(self) -> None:
        """Sign in as the owner of the lab's subscription."""
        self.json("az login --service-principal -u {owner} -p {secret} --tenant {tenant}".format(**self.ids))


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way.replace(" ", "-"))
def way(request: pytest.FixtureRequest) -> str:
    """Where azure-cli runs."""
    return str(request.param)


@pytest.fixture(scope="module")
def on_host(stage: Stage, client: Find, tmp_path_factory: pytest.TempPathFactory) -> Az:
    """azure-cli in the user's shell, signed in: for tests that need only one of the two places."""
    return signed_in(stage, client("az"), WAYS[1], tmp_path_factory.mktemp("az"))


@pytest.fixture(scope="module")
def az(stage: Stage, client: Find, way: str, tmp_path_factory: pytest.TempPathFactory) -> Az:
    """azure-cli, signed in as the owner of the subscription."""
    return signed_in(stage, client("az"), way, tmp_path_factory.mktemp("az"))


def signed_in(stage: Stage, directory: Path, way: str, home: Path) -> Az:
    """Return a shell with azure-cli, after `az login`; on the host with a home of its own."""
    own = stage.lab.variables
    subscription = f"/subscriptions/{own['LAB_SUBSCRIPTION_ID']}"
    group, walk = (f"{subscription}/resourceGroups/{name}" for name in ("rg", "keyvault-aad-pod-identity-rg"))
    identities = "providers/Microsoft.ManagedIdentity/userAssignedIdentities"
    ids = {
        "owner": own["LAB_OWNER_CLIENT_ID"],
        "secret": own["LAB_OWNER_CLIENT_SECRET"],
        "tenant": own["LAB_TENANT_ID"],
        "cluster": own["LAB_CLUSTER_CLIENT_ID"],
        "group": group,
        "demo": f"{group}/{identities}/demo",
        "compute": f"{group}/providers/Microsoft.Compute",
        "vault": f"{walk}/providers/Microsoft.KeyVault/vaults/keyvaultk8s",
        "sample": f"{walk}/{identities}/keyvaultsampleidentity",
    }
    in_a_pod = way == WAYS[0]
    made = Az(stage.unbound.run if in_a_pod else stage.on_host, ids, directory)
    if not in_a_pod:
        made.home = home
    made.log_in()
    return made


def test_every_command_succeeds_and_shows_what_it_did(az: Az, way: str, record: Record) -> None:
    """Commands for groups, vaults, secrets, identities, roles, machines and the directory work as in Azure."""
    record(f"azure-cli, {way}", VERSION, "25 commands: groups, vaults, secrets, identities, roles, machines, directory")
    az.type(TRANSCRIPT)
    seen, demo = az.seen, az.ids["demo"]
    assert {one["roleDefinitionName"] for one in seen["roles"]} >= {
        "Reader",
        "Contributor",
        "Managed Identity Operator",
    }
    assert (seen["secret"]["value"], seen["vault"]["name"]) == ("hello", "labkv1")
    assert [one["name"] for one in seen["identities"]] == ["demo"]
    for machine in ("vm", "vmss"):
        assert [one.lower() for one in seen[machine]["userAssignedIdentities"]] == [demo.lower()]
    assert seen["principal"]["id"] == az.ids["principal"]
    assert seen["token"]["accessToken"]
    if way == WAYS[0]:  # the further commands are run in one of the two places only
        further(az)
    az.type(LAST)
    assert az.json("az group list") is not None
    assert not [one for one in az.json("az group list") if one["name"] == "rg"]


def further(az: Az) -> None:
    """Check that deleted things come back, that a role is deleted, and further kinds of identity and credential."""
    seen = az.seen
    az.type(FURTHER)
    assert seen["system"]["type"] == "SystemAssigned"
    assert seen["shown"]["clientId"] == az.ids["client"]
    assert [one["subject"] for one in seen["federated"]] == ["system:serviceaccount:default:default"]
    assert "Contributor" not in {one["roleDefinitionName"] for one in seen["left"]}
    assert [one["name"] for one in seen["deleted"]] == ["labkv1"]
    assert seen["again"]["value"] == "hello"


def test_the_walkthroughs_commands_lead_to_its_secret(
    az: Az, stage: Stage, client: Find, way: str, record: Record
) -> None:
    """The post's commands are run as written; then its manifests, with the post's own program in Go as the image."""
    record(f"azure-cli, {way}", VERSION, "the walk-through's commands; its manifests with its sample in Go")
    client("go-autorest")
    az.type(WALKTHROUGH)
    version = az.seen["set"]["id"].rsplit("/", 1)[1]
    subscription = stage.lab.variables["LAB_SUBSCRIPTION_ID"]
    example = ROOT / "examples/keyvault-app"
    identity = (example / "azureidentity.yaml").read_text().replace("{YourSubscriptionID}", subscription)
    sample = (example / "keyvaultsample.yaml").read_text().replace("a1b2456e4ffc45be9239611f357a4321", version)
    manifests = [
        identity.replace("<clientid>", az.ids["client"]),
        (example / "azureidentitybinding.yaml").read_text(),
        sample,
    ]
    for manifest in manifests:
        stage.lab.kubectl("apply", "-f", "-", stdin=manifest)
    try:
        stage.lab.kubectl("rollout", "status", "deployment/keyvaultsample", "--timeout=60s")
        address = stage.lab.get("service", "keyvaultsample")["status"]["loadBalancer"]["ingress"][0]["ip"]
        wanted = (200, "MySuperSecretThatIDontWantToShareWithYou!")
        until(lambda: stage.lab.curl(f"http://{address}/keyvault") == wanted, "the secret at /keyvault", 90)
    finally:
        for manifest in reversed(manifests):
            stage.lab.kubectl("delete", "-f", "-", stdin=manifest)
    az.type(WALKTHROUGH_LAST)


def test_a_vault_of_today_needs_roles(on_host: Az, record: Record) -> None:
    """Without the flag a vault is made for roles: set-policy is refused, and secrets need a role."""
    record(
        "azure-cli, on the host",
        VERSION,
        "a vault without --enable-rbac-authorization false: set-policy refused, roles work",
    )
    az = on_host
    az.type("az group create -n rbac -l eastus\naz keyvault create -g rbac -n rbackv -l eastus")
    refused = az(f"az keyvault set-policy -n rbackv --secret-permissions get --object-id {az.ids['owner']}")
    assert refused.status != 0
    assert "--enable-rbac-authorization" in refused.err
    setting = "az keyvault secret set --vault-name rbackv -n s1 --value hello"
    refused = az(setting)
    assert refused.status != 0
    assert "ForbiddenByRbac" in refused.err
    scope = az.ids["group"].replace("/rg", "/rbac")
    role = "'Key Vault Secrets Officer'"
    az.json(f"az role assignment create --role {role} --assignee {az.ids['owner']} --scope {scope}")
    assert az.json(setting)["value"] == "hello"
    az.type("az group delete -n rbac --yes\naz keyvault purge -n rbackv")


def test_an_application_signs_in_as_it_may(on_host: Az, record: Record) -> None:
    """A wrong secret or tenant is refused; a new application signs in with a password, and with a certificate."""
    record(
        "azure-cli, on the host",
        VERSION,
        "ad sp create-for-rbac; login with a password and a certificate; a wrong secret is AADSTS7000215",
    )
    az = on_host
    base, owner, tenant = az.configuration, az.ids["owner"], az.ids["tenant"]
    az.configuration = f"{base}-wrong"
    refused = az(f"az login --service-principal -u {owner} -p wrong --tenant {tenant}")
    assert refused.status != 0
    assert "AADSTS7000215" in refused.err
    refused = az(f"az login --service-principal -u {owner} -p {az.ids['secret']} --tenant {owner}")
    assert refused.status != 0
    az.configuration = base
    scope = az.ids["group"].rpartition("/resourceGroups")[0]
    # With names: az's default names change each second only, and an application loses its password to its namesake.
    made = az.json(f"az ad sp create-for-rbac -n password --role Reader --scopes {scope}")
    certified = az.json(f"az ad sp create-for-rbac -n certificate --role Reader --scopes {scope} --create-cert")
    for number, how in (
        (1, f"-u {made['appId']} -p {made['password']}"),
        (2, f"-u {certified['appId']} --certificate {certified['fileWithCertAndPrivateKey']}"),
    ):
        az.configuration = f"{base}-{number}"
        seen = az.json(f"az login --service-principal {how} --tenant {tenant}")
        assert [one["tenantId"] for one in seen] == [tenant]
    az.configuration = base


def in_pod(pod: Pod, directory: Path, name: str) -> Az:
    """Return an azure-cli in a pod, which has not signed in yet."""
    return Az(pod.run, {}, directory, name)


def test_a_pod_with_a_binding_logs_in_as_its_identity(stage: Stage, client: Find, record: Record) -> None:
    """In a pod `az login --identity` signs in as the pod's identity; without a binding it fails."""
    directory = client("az")
    record("azure-cli, in a pod", VERSION, "login --identity as the pod's identity; without a binding it fails")
    az = in_pod(stage.bound, directory, "identity")
    assert az.json("az login --identity")[0]["user"]["assignedIdentityInfo"] == "MSI"
    assert az.json("az keyvault secret show --vault-name interopvault -n mySecret")["value"] == VALUE
    refused = in_pod(stage.unbound, directory, "identity")("az login --identity")
    assert refused.status != 0
    assert "Identity not found" in refused.err


def test_a_pods_own_token_signs_it_in(stage: Stage, client: Find, record: Record) -> None:
    """The pod's service-account token signs in as an identity once the identity has a federated credential for it."""
    directory = client("az")
    record("azure-cli, in a pod", VERSION, "login --federated-token with the pod's service-account token")
    identity = stage.admin.create_identity("interop", "federated", "westeurope")
    stage.admin.assign_role("Reader", identity["properties"]["principalId"], stage.admin.group("interop"))
    client_id = identity["properties"]["clientId"]
    tenant = stage.lab.variables["LAB_TENANT_ID"]
    log_in = f'az login --service-principal -u {client_id} --tenant {tenant} --federated-token "$(cat /exchange/token)"'
    refused = in_pod(stage.bound, directory, "federated-none")(log_in)
    assert "AADSTS70025" in refused.err
    credential = {
        "issuer": "https://kubernetes.default.svc",
        "subject": "system:serviceaccount:default:default",
        "audiences": ["api://AzureADTokenExchange"],
    }
    where = f"{identity['id']}/federatedIdentityCredentials/pods"
    stage.admin._arm("PUT", where, "2023-01-31", {"properties": credential})
    seen = in_pod(stage.bound, directory, "federated").json(log_in)
    assert [one["user"]["name"] for one in seen] == [client_id]
