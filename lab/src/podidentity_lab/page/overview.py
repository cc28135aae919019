"""What is there, as the page shows it: made of the lab's status, its Azure's state and Kubernetes objects. Pure.

The state holds every secret and key of the lab's Azure. Only what is named here leaves it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from podidentity_lab.demo.admin import ROLES

Json = Mapping[str, Any]

ITEMS_LIMIT = 200
"""Items of a kind on the page; the number of all is said beside them."""
TEXT_LIMIT = 300
_ROLE_NAMES = {identifier: name for name, identifier in ROLES.items()}
_LABEL = "aadpodidbinding"
_CLIENT_ID = "azure.workload.identity/client-id"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing: its name, its state, and facts as pairs of a word and a text. `is_well` colours the state."""

    name: str
    state: str = ""
    is_well: bool = True
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """All things of a kind. `key` is part of the page's element IDs; `absence` is said when there is none."""

    key: str
    title: str
    absence: str
    items: tuple[Item, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Objects:
    """What the Kubernetes API has, as JSON; an empty list for a kind that is not installed."""

    pods: Sequence[Json] = ()
    identities: Sequence[Json] = ()
    bindings: Sequence[Json] = ()
    assigned_identities: Sequence[Json] = ()
    service_accounts: Sequence[Json] = field(default=())


def overview(status: Json, state: Json, objects: Objects) -> tuple[Group, ...]:
    """Return the groups of the page, in its order."""
    return (
        _group("nodes", "Nodes", "no node", [_node(node, status) for node in status["nodes"]]),
        _group("pods", "Pods", "no pod yet: kubectl apply -f ...", map(_pod, objects.pods)),
        _group(
            "bindings",
            "AzureIdentities and bindings",
            "no AzureIdentity yet: docs/tutorial/first-token.md creates one",
            [*_azure_identities(objects), *_federated_accounts(objects)],
        ),
        _group(
            "identities",
            "Managed identities in Azure",
            "no identity yet: az identity create",
            [_identity(identity, state) for identity in state["identities"].values()],
        ),
        _group(
            "machines",
            "VMs and scale sets",
            "the nodes are no Azure machines",
            [_machine(machine, state) for machine in state["machines"].values()],
        ),
        _group(
            "vaults",
            "Key vaults",
            "no vault yet: az keyvault create",
            [_vault(v, state) for v in state["vaults"].values()],
        ),
    )


def _group(key: str, title: str, absence: str, items: Iterable[Item]) -> Group:
    every_item = list(items)
    return Group(key, title, absence, tuple(every_item[:ITEMS_LIMIT]), len(every_item))


def _facts(**texts: object) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name.replace("_", " "), str(text)[:TEXT_LIMIT]) for name, text in texts.items() if text not in ("", None)
    )


def _name(obj: Json) -> str:
    metadata = obj["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"


def _node(node: Json, status: Json) -> Item:
    packets = status["imds_packets"].get(node["name"], 0)
    facts = _facts(
        address=node["address"],
        pods=node["pods"],
        machine=node["machine"].rpartition("/providers/")[2].partition("/")[2],
        packets_to_IMDS=packets,
    )
    return Item(node["name"], facts=facts)


def _pod(pod: Json) -> Item:
    labels = pod["metadata"].get("labels") or {}
    phase = str(pod.get("status", {}).get("phase", "Pending"))
    is_ready = any(
        (condition.get("type"), condition.get("status")) == ("Ready", "True")
        for condition in pod.get("status", {}).get("conditions") or ()
    )
    facts = _facts(
        node=pod["spec"].get("nodeName", "none yet"),
        binding=labels.get(_LABEL, ""),
        service_account=pod["spec"].get("serviceAccountName", ""),
    )
    state = "not ready" if phase == "Running" and not is_ready else phase
    return Item(_name(pod), state, state not in ("Failed", "not ready"), facts)


def _azure_identities(objects: Objects) -> Iterable[Item]:
    for identity in objects.identities:
        metadata = identity["metadata"]
        bindings = [
            binding
            for binding in objects.bindings
            if binding["metadata"].get("namespace") == metadata.get("namespace")
            and binding.get("spec", {}).get("azureIdentity") == metadata["name"]
        ]
        selectors = ", ".join(sorted({str(binding["spec"].get("selector", "")) for binding in bindings}))
        facts = _facts(
            selector=selectors or "no binding",
            client_ID=identity.get("spec", {}).get("clientID", ""),
            pods="; ".join(_assignments(metadata, objects)),
        )
        yield Item(_name(identity), "bound" if bindings else "not bound", bool(bindings), facts)


def _assignments(metadata: Json, objects: Objects) -> list[str]:
    """Return the pods that have an AzureIdentity, each with the state of its AzureAssignedIdentity."""
    texts = []
    for assigned_identity in objects.assigned_identities:
        spec = assigned_identity.get("spec", {})
        reference = (spec.get("azureIdentityRef") or {}).get("metadata") or {}
        if (reference.get("namespace"), reference.get("name")) == (metadata.get("namespace"), metadata["name"]):
            state = (assigned_identity.get("status") or {}).get("status") or "Created"
            texts.append(f"{spec.get('podNamespace')}/{spec.get('pod')} {state}")
    return texts


def _federated_accounts(objects: Objects) -> Iterable[Item]:
    for account in objects.service_accounts:
        client_id = (account["metadata"].get("annotations") or {}).get(_CLIENT_ID)
        if client_id:
            yield Item(_name(account), "service account", facts=_facts(client_ID=client_id))


def _identity(identity: Json, state: Json) -> Item:
    properties = identity["properties"]
    roles = [
        f"{_ROLE_NAMES.get(role['role_id'], role['role_id'])} on {role['scope'].rpartition('/')[2]}"
        for role in state["roles"].values()
        if role["principal_id"] == properties["principalId"]
    ]
    facts = _facts(
        client_ID=properties["clientId"],
        group=identity["id"].partition("/resourceGroups/")[2].partition("/")[0],
        roles=", ".join(roles) or "none",
    )
    return Item(identity["name"], facts=facts)


def _machine(machine: Json, state: Json) -> Item:
    names = sorted(identity.rpartition("/")[2] for identity in machine["identities"].values())
    operation = state["operations"].get(machine["operation"])
    is_changing = operation is not None and not operation.get("settled", True)
    facts = _facts(identities=", ".join(names) or "none", system_assigned="yes" if machine["system_principal"] else "")
    kind = "scale set" if machine["kind"].lower().endswith("scalesets") else "VM"
    return Item(machine["id"].rpartition("/")[2], f"{kind}, changing" if is_changing else kind, facts=facts)


def _vault(vault: Json, state: Json) -> Item:
    name = vault["name"]
    names = sorted(key.partition("/")[2] for key in state["secrets"] if key.partition("/")[0] == name.lower())
    permissions = "roles" if vault["properties"].get("enableRbacAuthorization") else "access policies"
    return Item(name, permissions, facts=_facts(secrets=", ".join(names) or "none"))


EMPTY = overview(
    {"nodes": (), "imds_packets": {}},
    {"identities": {}, "machines": {}, "operations": {}, "roles": {}, "secrets": {}, "vaults": {}},
    Objects(),
)
"""The groups before anything was read."""
