"""docs/reference/events.md: the events and the conditions that the daemons write."""

import ast
from pathlib import Path

from references.source import PRODUCT, calls, table

INTRODUCTION = """\
# Events and conditions

Written by tools/reference.py; the reasons are those of the code, which it compares.

## Events

`kubectl get events --field-selector reason='binding apply error'` finds those of one reason. Equal events are one event
with a count. A role without the right to write them costs the events and nothing else.
"""
EVENTS = {
    "FederatedCredentialMissing": (
        "Warning",
        "the broker's ServiceAccount",
        "Entra ID knows no federated credential for the broker; the message has the command that creates it.",
    ),
    "FirstToken": ("Normal", "AzureIdentityBinding", "A pod got its first token: the whole way works."),
    "binding applied": (
        "Normal",
        "AzureIdentityBinding",
        "The identity is assigned to the pods that the message names.",
    ),
    "binding apply error": (
        "Warning",
        "AzureIdentityBinding",
        "The binding has no effect on a pod that it selects, or ARM or Kubernetes refused; the message says why.",
    ),
    "binding remove error": ("Warning", "AzureIdentityBinding", "Kubernetes refused to delete an assigned identity."),
    "binding removed": ("Normal", "AzureIdentityBinding", "The pods no longer have the identity."),
    "status update error": ("Warning", "AzureAssignedIdentity", "Kubernetes refused its new state."),
    "unreadable": (
        "Warning",
        "AzureAssignedIdentity",
        "MIC did not write it, or it is damaged; it counts for nothing.",
    ),
    "wrong client ID": ("Warning", "AzureIdentity", "`clientID` is not the one that Azure knows for `resourceID`."),
}
CONDITIONS_INTRODUCTION = """
## Conditions

On AzureIdentity: `Assigned`, `ClientIDMatches`. On AzureIdentityBinding: `Applied`. By default those are written that
say what somebody has to do, and what ends them (`--conditions=problems|all|off`). They follow the events by
seconds.
"""
CONDITIONS = {
    ("Applied", "Applied"): "Every pod that it selects has the identity.",
    ("Applied", "Assigning"): "Pods that it selects wait for the identity. Passes by itself.",
    ("Applied", "AssignmentFailed"): "ARM refused without a code; the message has its words.",
    ("Applied", "BadNodeSelector"): "The annotation `podidentity.io/node-selector` is no selector.",
    ("Applied", "IdentityNotFound"): "There is no AzureIdentity of that name in the binding's namespace.",
    ("Applied", "MalformedResourceID"): "`resourceID` of its AzureIdentity is not the ID of a user-assigned identity.",
    ("Applied", "NameTaken"): "Another identity of the same name stands where the pod's object would be.",
    ("Applied", "NamespaceFull"): "The namespace has 20,000 assigned identities.",
    ("Applied", "NoPods"): "No pod with a node has its label. Passes by itself.",
    ("Applied", "NoSelector"): "`selector` is empty.",
    (
        "Applied",
        "NotAllowed",
    ): "The annotation of the namespace does not allow the identity (`--namespace-allow-list`).",
    ("Applied", "OtherNamespace"): "The pod is in another namespace, and identities are namespaced.",
    ("Applied", "TooManyIdentities"): "The pod has 32 identities already.",
    ("Assigned", "Assigned"): "The identity is on every VM and scale set that needs it.",
    ("Assigned", "Assigning"): "Azure is at work. Passes by itself.",
    ("Assigned", "AssignmentFailed"): "ARM refused without a code; the message has its words.",
    ("Assigned", "MalformedResourceID"): "`resourceID` is not the ID of a user-assigned identity.",
    ("Assigned", "NotInUse"): "No pod uses it. Passes by itself.",
    ("ClientIDMatches", "Matches"): "`clientID` is the one that Azure knows.",
    ("ClientIDMatches", "WrongClientID"): "It is not; the message names both.",
}
ARM_REASONS = "Any other reason is ARM's own error code: [what they mean](../runbooks/PodIdentityArmRefuses.md).\n"
_KINDS = {"Normal", "Warning"}


def page() -> str:
    """Return the whole page. Raise `SystemExit` where the tables above are not what the code says."""
    _compare("events", set(EVENTS), event_reasons())
    _compare("conditions", {reason for _, reason in CONDITIONS}, condition_reasons())
    events = [(f"`{reason}`", *row) for reason, row in EVENTS.items()]
    conditions = [(f"`{kind}`", f"`{reason}`", text) for (kind, reason), text in CONDITIONS.items()]
    return (
        f"{INTRODUCTION}\n{table(('reason', 'type', 'on', 'meaning'), events)}{CONDITIONS_INTRODUCTION}\n"
        f"{table(('condition', 'reason', 'meaning'), conditions)}\n{ARM_REASONS}"
    )


def event_reasons() -> set[str]:
    """Return the reasons of all events: the text after `Normal` or `Warning`, or in the key of a group of them."""
    reasons = set()
    for call in calls(PRODUCT):
        for position, argument in enumerate(call.node.args[:-1]):
            if call.name in {"record", "_record"} and getattr(argument, "value", None) in _KINDS:
                reasons |= set(call.texts(position + 1)) or _grouped(call.module)
    return reasons


def _grouped(module: str) -> set[str]:
    """Return the second text of each subscript with three parts: `groups[key, reason, predicate]`."""
    tree = ast.parse((PRODUCT.parent / module).read_text())
    subscripts = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    keys = [key.elts[1] for key in subscripts if isinstance(key, ast.Tuple) and len(key.elts) == len(("k", "r", "p"))]
    return {str(key.value) for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}


def condition_reasons() -> set[str]:
    """Return the reasons of all conditions that are not ARM's: of `_false`, `Condition` and `Unusable`."""
    reasons = set()
    for call in calls(PRODUCT / "core"):
        position = {"_false": 1, "Condition": 2, "Unusable": 0}.get(call.name)
        if position is not None:
            reasons |= {text for text in call.texts(position) if text.isalpha()}
    text = Path(PRODUCT / "core/assignment/conditions.py").read_text()
    return reasons | ({"AssignmentFailed"} if '"AssignmentFailed"' in text else set())


def _compare(title: str, rows: set[str], code: set[str]) -> None:
    if rows != code:
        raise SystemExit(
            f"tools/references/events.py: {title}: the code has {sorted(code - rows)} besides, and lacks "
            f"{sorted(rows - code)}; correct the table"
        )
