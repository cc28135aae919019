"""The steps of the walk-through, in its order and with its names, from the vault to the secret at /keyvault."""

import json

from podidentity.lab.demo.stage import Stage, expect

GROUP = "keyvault-aad-pod-identity-rg"
VAULT = "keyvaultk8s"
LOCATION = "westeurope"
SECRET = "mySecret"  # noqa: S105  # the name that the walk-through gives its secret
VALUE = "MySuperSecretThatIDontWantToShareWithYou!"
IDENTITY = "keyvaultsampleidentity"
APP = "keyvaultsample"
EXAMPLE = "examples/keyvault-app"


def create_group(stage: Stage) -> None:
    """A resource group for the vault."""
    answer = stage.admin.create_group(GROUP, LOCATION)
    stage.az(f"group create -n {GROUP} -l {LOCATION}", answer, "id")
    expect("location of the resource group", expected=LOCATION, got=answer["location"])
    stage.narrator.proved("the resource group is there")


def create_vault(stage: Stage) -> None:
    """The vault, with access policies as in 2018; `az` makes RBAC vaults unless told."""
    answer = stage.admin.create_vault(GROUP, VAULT, LOCATION)
    command = f"keyvault create -n {VAULT} -g {GROUP} -l {LOCATION} --enable-rbac-authorization false"
    stage.az(command, answer, "vaultUri")
    policies = answer["properties"]["accessPolicies"]
    expect("number of access policies of the new vault", expected=1, got=len(policies))
    stage.narrator.proved("the vault is there; its one access policy is its creator's")


def set_secret(stage: Stage) -> None:
    """The secret that the application is to show."""
    answer = stage.admin.set_secret(VAULT, SECRET, VALUE)
    stage.facts["version"] = answer["id"].rsplit("/", 1)[1]
    stage.az(f"keyvault secret set -n {SECRET} --vault-name {VAULT} --value {VALUE}", answer, "id")
    stage.narrator.proved(f"the secret is in the vault, as version {stage.facts['version']}")


def install(stage: Stage) -> None:
    """MIC and NMI, by the walk-through's one command."""
    stage.kubectl("create", "-f", "deploy/infra/deployment-rbac.yaml")
    stage.rollout("deployment/mic", "daemonset/nmi")
    stage.narrator.proved("MIC runs, and NMI runs on every node with its redirect verified")


def create_identity(stage: Stage) -> None:
    """The managed identity of the application."""
    answer = stage.admin.create_identity(GROUP, IDENTITY, LOCATION)
    stage.facts["client_id"] = answer["properties"]["clientId"]
    stage.facts["principal_id"] = answer["properties"]["principalId"]
    stage.az(f"identity create -n {IDENTITY} -g {GROUP}", answer, "clientId", "principalId")
    shown = {name for name in answer["properties"] if "secret" in name.lower() or "password" in name.lower()}
    expect("credentials in Azure's answer", expected=set(), got=shown)
    stage.narrator.proved("the identity exists, and Azure's answer holds no credential of it")


def grant_reader(stage: Stage) -> None:
    """Reader on the vault."""
    scope = stage.admin.vault(GROUP, VAULT)
    answer = stage.admin.assign_role("Reader", stage.facts["principal_id"], scope)
    command = f"role assignment create --role Reader --assignee {stage.facts['principal_id']} --scope {scope}"
    stage.az(command, answer, "principalId", "scope")
    expect("who was granted Reader", expected=stage.facts["principal_id"], got=answer["properties"]["principalId"])
    stage.narrator.proved("the identity is a Reader of the vault")


def set_policy(stage: Stage) -> None:
    """The right to read secrets."""
    answer = stage.admin.set_policy(GROUP, VAULT, stage.facts["client_id"])
    command = f"keyvault set-policy -n {VAULT} --secret-permissions get list --spn {stage.facts['client_id']}"
    stage.az(command, answer, "name")
    allowed = {one["objectId"]: one["permissions"] for one in answer["properties"]["accessPolicies"]}
    got = sorted(allowed.get(stage.facts["principal_id"], {}).get("secrets", ()))  # az has an order of its own
    expect("permissions on secrets in the identity's access policy", expected=["get", "list"], got=got)
    stage.narrator.proved("the vault lets the identity get and list secrets, and nothing else")


def let_the_cluster_use_it(stage: Stage) -> None:
    """Managed Identity Operator for the cluster's service principal, which MIC signs in as."""
    scope, principal = stage.admin.identity(GROUP, IDENTITY), stage.admin.cluster_principal()
    answer = stage.admin.assign_role("Managed Identity Operator", principal, scope)
    command = f'role assignment create --role "Managed Identity Operator" --assignee {principal} --scope {scope}'
    stage.az(command, answer, "principalId", "scope")
    expect("scope of the role", expected=scope, got=answer["properties"]["scope"])
    stage.narrator.proved("the cluster's service principal, which MIC signs in as, may use this identity")


def create_azure_identity(stage: Stage) -> None:
    """The post's AzureIdentity, in its capitalised spelling."""
    text = (stage.repository / EXAMPLE / "azureidentity.yaml").read_text()
    filled = text.replace("{YourSubscriptionID}", stage.admin.subscription)
    filled = filled.replace("<clientid>", stage.facts["client_id"])
    show = f"kubectl apply -f {EXAMPLE}/azureidentity.yaml   # with the subscription and the client ID filled in"
    stage.kubectl("apply", "-f", "-", stdin=filled, show=show)
    spec = stage.get("azureidentity", IDENTITY)["spec"]
    expect("spec.ClientID of the stored AzureIdentity", expected=stage.facts["client_id"], got=spec.get("ClientID"))
    stage.narrator.proved("the manifest of 2018, in its capitalised spelling, is accepted and stored as it stands")


def create_binding(stage: Stage) -> None:
    """The post's AzureIdentityBinding."""
    stage.kubectl("apply", "-f", f"{EXAMPLE}/azureidentitybinding.yaml")
    spec = stage.get("azureidentitybinding", f"{IDENTITY}-binding")["spec"]
    expect("what the stored binding selects", expected=IDENTITY, got=spec.get("Selector"))
    stage.narrator.proved(f"pods labelled aadpodidbinding={IDENTITY} are bound to the identity")


def deploy_app(stage: Stage) -> None:
    """The sample application, without any credential."""
    text = (stage.repository / EXAMPLE / "keyvaultsample.yaml").read_text()
    filled = text.replace("a1b2456e4ffc45be9239611f357a4321", stage.facts["version"])
    show = f"kubectl create -f {EXAMPLE}/keyvaultsample.yaml   # with the secret's version filled in"
    stage.kubectl("create", "-f", "-", stdin=filled, show=show)
    stage.rollout(f"deployment/{APP}")
    pod = stage.get("pods", "-l", f"app={APP}")["items"][0]
    stage.facts["node"] = pod["spec"]["nodeName"]
    stage.until("the identity of the pod to be Assigned", lambda: stage.assigned_states().get(IDENTITY) == "Assigned")
    stage.narrator.proved(f"the pod runs on {stage.facts['node']} and MIC has assigned its identity")


def fetch_secret(stage: Stage) -> None:
    """What the walk-through promises: the secret in the browser."""
    service = stage.get("service", APP)
    address = service["status"]["loadBalancer"]["ingress"][0]["ip"]
    url = f"http://{address}/keyvault"
    stage.narrator.asked(f"curl {url}")
    last: list[object] = []

    def shown() -> bool:
        last[:] = stage.fetch(url)
        return last[0] == 200

    try:
        stage.until(f"{url} to answer 200", shown)
    finally:
        stage.narrator.answered(json.dumps(last))
    expect(url, expected=VALUE, got=str(last[1]).strip())
    stage.explain(stage.get("pods", "-l", f"app={APP}")["items"][0]["metadata"]["name"], outcome=0)
    stage.narrator.proved("the application read the secret with its own identity, and no secret of its own")
