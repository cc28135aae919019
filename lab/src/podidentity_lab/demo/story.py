"""The steps of the walk-through, in its order and with its names, from the vault to the secret at /keyvault."""

import json

from podidentity_lab.demo.stage import Stage, expect

GROUP = "keyvault-aad-pod-identity-rg"
VAULT = "keyvaultk8s"
LOCATION = "westeurope"
SECRET = "mySecret"  # noqa: S105  # the name that the walk-through gives its secret
VALUE = "MySuperSecretThatIDontWantToShareWithYou!"
IDENTITY = "keyvaultsampleidentity"
APP = "keyvaultsample"
EXAMPLE = "examples/keyvault-app"


def create_group(stage: Stage) -> None:
    """Create a resource group for the vault."""
    answer = stage.admin.create_group(GROUP, LOCATION)
    stage.az(f"group create -n {GROUP} -l {LOCATION}", answer, "id")
    expect("location of the resource group", right=LOCATION, actual=answer["location"])
    stage.narrator.show_proof("the resource group is there")


def create_vault(stage: Stage) -> None:
    """Create the vault, with access policies as in 2018: `az` makes RBAC vaults unless told otherwise."""
    answer = stage.admin.create_vault(GROUP, VAULT, LOCATION)
    command = f"keyvault create -n {VAULT} -g {GROUP} -l {LOCATION} --enable-rbac-authorization false"
    stage.az(command, answer, "vaultUri")
    policies = answer["properties"]["accessPolicies"]
    expect("number of access policies of the new vault", right=1, actual=len(policies))
    stage.narrator.show_proof("the vault is there; its one access policy is its creator's")


def set_secret(stage: Stage) -> None:
    """Set the secret that the application is to show."""
    answer = stage.admin.set_secret(VAULT, SECRET, VALUE)
    stage.facts["version"] = answer["id"].rsplit("/", 1)[1]
    stage.az(f"keyvault secret set -n {SECRET} --vault-name {VAULT} --value {VALUE}", answer, "id")
    stage.narrator.show_proof(f"the secret is in the vault, as version {stage.facts['version']}")


def install(stage: Stage) -> None:
    """Install MIC and NMI, by the walk-through's one command."""
    stage.kubectl("create", "-f", "deploy/infra/deployment-rbac.yaml")
    stage.rollout("deployment/mic", "daemonset/nmi")
    stage.narrator.show_proof("MIC runs, and NMI runs on every node with its redirect verified")


def create_identity(stage: Stage) -> None:
    """Create the managed identity of the application."""
    answer = stage.admin.create_identity(GROUP, IDENTITY, LOCATION)
    stage.facts["client_id"] = answer["properties"]["clientId"]
    stage.facts["principal_id"] = answer["properties"]["principalId"]
    stage.az(f"identity create -n {IDENTITY} -g {GROUP}", answer, "clientId", "principalId")
    credentials = {name for name in answer["properties"] if "secret" in name.lower() or "password" in name.lower()}
    expect("credentials in Azure's answer", right=set(), actual=credentials)
    stage.narrator.show_proof("the identity exists, and Azure's answer holds no credential of it")


def grant_reader(stage: Stage) -> None:
    """Give the identity the role Reader on the vault."""
    scope = stage.admin.vault(GROUP, VAULT)
    answer = stage.admin.assign_role("Reader", stage.facts["principal_id"], scope)
    command = f"role assignment create --role Reader --assignee {stage.facts['principal_id']} --scope {scope}"
    stage.az(command, answer, "principalId", "scope")
    expect("who was granted Reader", right=stage.facts["principal_id"], actual=answer["properties"]["principalId"])
    stage.narrator.show_proof("the identity is a Reader of the vault")


def set_policy(stage: Stage) -> None:
    """Let the identity read secrets, by an access policy."""
    answer = stage.admin.set_policy(GROUP, VAULT, stage.facts["client_id"])
    command = f"keyvault set-policy -n {VAULT} --secret-permissions get list --spn {stage.facts['client_id']}"
    stage.az(command, answer, "name")
    permissions = {policy["objectId"]: policy["permissions"] for policy in answer["properties"]["accessPolicies"]}
    actual = sorted(permissions.get(stage.facts["principal_id"], {}).get("secrets", ()))  # az has an order of its own
    expect("permissions on secrets in the identity's access policy", right=["get", "list"], actual=actual)
    stage.narrator.show_proof("the vault lets the identity get and list secrets, and nothing else")


def let_the_cluster_use_it(stage: Stage) -> None:
    """Make the cluster's service principal, which MIC signs in as, a Managed Identity Operator of the identity."""
    scope, principal = stage.admin.identity(GROUP, IDENTITY), stage.admin.cluster_principal()
    answer = stage.admin.assign_role("Managed Identity Operator", principal, scope)
    command = f'role assignment create --role "Managed Identity Operator" --assignee {principal} --scope {scope}'
    stage.az(command, answer, "principalId", "scope")
    expect("scope of the role", right=scope, actual=answer["properties"]["scope"])
    stage.narrator.show_proof("the cluster's service principal, which MIC signs in as, may use this identity")


def create_azure_identity(stage: Stage) -> None:
    """Create the walk-through's AzureIdentity, whose fields are capitalised as they were in 2018."""
    text = (stage.files / EXAMPLE / "azureidentity.yaml").read_text()
    manifest = text.replace("{YourSubscriptionID}", stage.admin.subscription)
    manifest = manifest.replace("<clientid>", stage.facts["client_id"])
    show = f"kubectl apply -f {EXAMPLE}/azureidentity.yaml   # with the subscription and the client ID filled in"
    stage.kubectl("apply", "-f", "-", stdin=manifest, show=show)
    spec = stage.get("azureidentity", IDENTITY)["spec"]
    expect("spec.ClientID of the stored AzureIdentity", right=stage.facts["client_id"], actual=spec.get("ClientID"))
    stage.narrator.show_proof("the manifest of 2018, in its capitalised spelling, is accepted and stored as it stands")


def create_binding(stage: Stage) -> None:
    """Create the walk-through's AzureIdentityBinding."""
    stage.kubectl("apply", "-f", f"{EXAMPLE}/azureidentitybinding.yaml")
    spec = stage.get("azureidentitybinding", f"{IDENTITY}-binding")["spec"]
    expect("what the stored binding selects", right=IDENTITY, actual=spec.get("Selector"))
    stage.narrator.show_proof(f"pods labelled aadpodidbinding={IDENTITY} are bound to the identity")


def deploy_app(stage: Stage) -> None:
    """Deploy the sample application, without any credential."""
    text = (stage.files / EXAMPLE / "keyvaultsample.yaml").read_text()
    manifest = text.replace("a1b2456e4ffc45be9239611f357a4321", stage.facts["version"])
    show = f"kubectl create -f {EXAMPLE}/keyvaultsample.yaml   # with the secret's version filled in"
    stage.kubectl("create", "-f", "-", stdin=manifest, show=show)
    stage.rollout(f"deployment/{APP}")
    pod = stage.get("pods", "-l", f"app={APP}")["items"][0]
    stage.facts["node"] = pod["spec"]["nodeName"]
    stage.until("the identity of the pod to be Assigned", lambda: stage.assigned_states().get(IDENTITY) == "Assigned")
    stage.narrator.show_proof(f"the pod runs on {stage.facts['node']} and MIC has assigned its identity")


def fetch_secret(stage: Stage) -> None:
    """Fetch what the walk-through promises: the secret in the browser."""
    service = stage.get("service", APP)
    address = service["status"]["loadBalancer"]["ingress"][0]["ip"]
    url = f"http://{address}/keyvault"
    stage.narrator.show_command(f"curl {url}")
    last: list[object] = []

    def is_shown() -> bool:
        last[:] = stage.fetch(url)
        return last[0] == 200

    try:
        stage.until(f"{url} to answer 200", is_shown)
    finally:
        stage.narrator.show_answer(json.dumps(last))
    expect(url, right=VALUE, actual=str(last[1]).strip())
    stage.explain(stage.get("pods", "-l", f"app={APP}")["items"][0]["metadata"]["name"], outcome=0)
    stage.narrator.show_proof("the application read the secret with its own identity, and no secret of its own")
