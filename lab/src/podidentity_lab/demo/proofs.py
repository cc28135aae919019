"""What the demo proves after the walk-through: no pod gets what is not its own."""

import json
from typing import Any

from podidentity_lab.demo.stage import Stage, StepError, expect
from podidentity_lab.demo.story import GROUP, IDENTITY, LOCATION, SECRET, VAULT

OTHER = "other-identity"
ASK = f"""
import base64, json, urllib.error, urllib.request

def get(url, headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")

token_url = ("http://169.254.169.254/metadata/identity/oauth2/token"
             "?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net")
status, token = get(token_url, {{"Metadata": "true"}})
result = {{"token": [status, token]}}
if status == 200:
    bearer = {{"Authorization": "Bearer " + token["access_token"]}}
    result["vault"] = get("https://{VAULT}.vault.azure.net/secrets/{SECRET}?api-version=7.4", bearer)
    claims = json.loads(base64.urlsafe_b64decode(token["access_token"].split(".")[1] + "=="))
    result["token"] = [status, {{name: claims[name] for name in ("appid", "oid", "aud")}}]
print(json.dumps(result))
"""


def without_podidentity(stage: Stage) -> None:
    """Ask before NMI is installed, as a control: nothing is intercepted, and the counter that is 0 later does count."""
    packets_before = stage.packets()
    result = _ask(stage, "early", {})
    expect("answer to an early pod: the metadata service's own", right=400, actual=result["token"][0])
    counts = stage.packets()
    stage.narrator.show_command("podidentity lab status   # packets of pods that reached the node's metadata service")
    stage.narrator.show_answer(json.dumps(counts))
    node = stage.facts["node"]
    if counts[node] <= packets_before[node]:
        raise StepError(f"packets counted on {node}: expected more than {packets_before[node]}, got {counts[node]}")
    stage.facts["packets"] = json.dumps(counts)
    stage.narrator.show_proof("without podidentity a pod reaches its node's metadata service, and the counter sees it")


def without_the_label(stage: Stage) -> None:
    """Run a neighbour without the label: it gets no token, neither the application's nor the node's."""
    node = _ask(stage, "node-itself", {}, host_network=True)
    expect("status of the node's own token request, which nobody intercepts", right=200, actual=node["token"][0])
    expect("identity that the node answers with", right=stage.facts["client_id"], actual=node["token"][1]["appid"])
    result = _ask(stage, "neighbour", {})
    expect("status of the neighbour's token request", right=400, actual=result["token"][0])
    expect("reason", right="Identity not found", actual=result["token"][1]["error_description"])
    stage.narrator.show_proof(
        "the node would give that token to whoever reaches it; the pod without the label gets none"
    )


def second_identity(stage: Stage) -> None:
    """Run a second application on the same node, with an identity of its own."""
    answer = stage.admin.create_identity(GROUP, OTHER, LOCATION)
    stage.az(f"identity create -n {OTHER} -g {GROUP}", answer, "clientId", "principalId")
    scope = stage.admin.identity(GROUP, OTHER)
    assignment = stage.admin.assign_role("Managed Identity Operator", stage.admin.cluster_principal(), scope)
    stage.az(f'role assignment create --role "Managed Identity Operator" ... --scope {scope}', assignment, "scope")
    properties = answer["properties"]
    stage.bind(OTHER, answer)
    result = _ask(stage, "second-app", {"aadpodidbinding": OTHER})
    expect("status of the second application's token request", right=200, actual=result["token"][0])
    claims = result["token"][1]
    expect("appid in the token", right=properties["clientId"], actual=claims["appid"])
    expect("oid in the token", right=properties["principalId"], actual=claims["oid"])
    if properties["clientId"] == stage.facts["client_id"]:
        raise StepError(f"{OTHER} and {IDENTITY} have the same client ID: the proof is void")
    stage.facts["vault_answer"] = json.dumps(result["vault"])
    stage.narrator.show_proof("two applications on one node, two identities: each gets its own")


def refused_by_the_vault(stage: Stage) -> None:
    """Ask the vault with the second application's token: it is valid, and the vault refuses it."""
    stage.narrator.show_command(
        f"GET https://{VAULT}.vault.azure.net/secrets/{SECRET}   # with the second application's token"
    )
    status, body = json.loads(stage.facts["vault_answer"])
    stage.narrator.show_answer(f"{status} {json.dumps(body)}")
    expect("the vault's answer to the second application", right=403, actual=status)
    stage.narrator.show_proof("the first application's vault refuses the second's identity")


def no_packet_reached_imds(stage: Stage) -> None:
    """Read the counters: only NMI asked the node's metadata service."""
    stage.narrator.show_command("podidentity lab status   # packets of pods that reached their node's metadata service")
    count, packets_before = stage.packets(), json.loads(stage.facts["packets"])
    stage.narrator.show_answer(json.dumps(count))
    since = {node: count[node] - packets_before[node] for node in count}
    expect("packets of pods at the metadata service since NMI runs", right=dict.fromkeys(count, 0), actual=since)
    stage.narrator.show_proof("since NMI runs, not one packet of any pod reached the metadata service of its node")


def _ask(stage: Stage, name: str, labels: dict[str, str], *, host_network: bool = False) -> dict[str, Any]:
    printed = stage.run_in_pod(name, ASK, labels, host_network=host_network)
    try:
        result: dict[str, Any] = json.loads(printed)
    except ValueError:
        raise StepError(f"pod {name} printed no answer but: {printed[:300]!r}") from None
    return result
