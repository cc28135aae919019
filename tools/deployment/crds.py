"""The four custom resource definitions: structural v1 schemas with both spellings, validation rules, printer columns.

No status subresource: upstream writes the status on the main object, and must be able to after a rollback.
No rule looks inside the embedded references of an AzureAssignedIdentity: what upstream stored must stay writable.
"""

from collections.abc import Iterable

from deployment.schemas import (
    COUNT,
    GUID,
    LABELS,
    NUMBER,
    OPEN,
    OPTIONAL_COUNT,
    OPTIONAL_GUIDS,
    TEXT,
    Field,
    Rule,
    conditions,
    embedded,
    structure,
)
from deployment.settings import GROUP, VERSION, Json

RESOURCE_ID_FORM = (
    "(?i)^/subscriptions/[^/]+/resourcegroups/[^/]+/providers/microsoft[.]managedidentity/userassignedidentities/[^/]+$"
)
# ARM allows 36 + 90 + 128 characters for the three names; a bound is needed, or the rule's estimated cost is refused.
RESOURCE_ID: Json = {**TEXT, "maxLength": 512}

UNUSED_METADATA = Field("metadata", OPEN, "Not used; kept because upstream wrote it.")
SECRET_REFERENCE = structure(
    "",
    [
        Field("name", TEXT, "Name of the Secret.", old="Name"),
        Field("namespace", TEXT, "Namespace of the Secret; without one, the AzureIdentity's own.", old="Namespace"),
    ],
)
del SECRET_REFERENCE["description"]  # the field that holds it describes it


def all_definitions() -> tuple[Json, ...]:
    """Return the definitions in the order in which they are installed."""
    return (assigned_identity(), binding(), identity(), exception())


def identity() -> Json:
    """Return AzureIdentity: which Azure identity, and how to obtain its tokens."""
    fields = [
        Field(
            "type",
            NUMBER,
            "0: user-assigned managed identity; 1: service principal with a secret; 2: with a certificate.",
        ),
        Field("resourceID", RESOURCE_ID, "Azure resource ID of the managed identity (type 0).", old="ResourceID"),
        Field("clientID", GUID, "Client ID of the managed identity or service principal.", old="ClientID"),
        Field(
            "clientPassword",
            SECRET_REFERENCE,
            "Secret with the secret or certificate (types 1, 2).",
            old="ClientPassword",
        ),
        Field("tenantID", GUID, "Tenant of the service principal (types 1, 2).", old="TenantID"),
        Field(
            "auxiliaryTenantIDs",
            OPTIONAL_GUIDS,
            "Further tenants; each gives one token more.",
            old="AuxiliaryTenantIDs",
        ),
        Field("adResourceID", TEXT, "Resource to ask a token for, when the pod names none.", old="ADResourceID"),
        Field("adEndpoint", TEXT, "Microsoft Entra endpoint; without one, the public cloud's.", old="ADEndpoint"),
        Field("replicas", OPTIONAL_COUNT, "Not used; kept because upstream wrote it.", old="Replicas"),
        UNUSED_METADATA,
    ]
    rules = [
        Rule("!has(self.type) || self.type in [0, 1, 2]", _TYPES),
        *map(_resource_id_rule, ("resourceID", "ResourceID")),
    ]
    return _definition(
        ("AzureIdentity", "azureidentity", "azureidentities"),
        "An Azure identity that pods may use.",
        {"spec": structure("The identity.", fields, rules), "status": _status()},
        [_column("Type", "spec.type"), _column("ClientID", "spec.clientID"), *_condition_columns("Assigned")],
    )


def binding() -> Json:
    """Return AzureIdentityBinding: which pods use which AzureIdentity."""
    fields = [
        Field("azureIdentity", TEXT, "Name of an AzureIdentity in the binding's namespace.", old="AzureIdentity"),
        Field("selector", TEXT, "Pods whose label `aadpodidbinding` has this value use the identity.", old="Selector"),
        Field("weight", NUMBER, "Not used; kept because upstream wrote it.", old="Weight"),
        UNUSED_METADATA,
    ]
    rules = [
        *(_non_empty(name, "name an AzureIdentity of this namespace") for name in ("azureIdentity", "AzureIdentity")),
        *(_non_empty(name, "be the value of the pods' label aadpodidbinding") for name in ("selector", "Selector")),
    ]
    return _definition(
        ("AzureIdentityBinding", "azureidentitybinding", "azureidentitybindings"),
        "Binds pods, chosen by their label `aadpodidbinding`, to an AzureIdentity.",
        {"spec": structure("The binding.", fields, rules), "status": _status()},
        [
            _column("AzureIdentity", "spec.azureIdentity"),
            _column("Selector", "spec.selector"),
            *_condition_columns("Applied"),
        ],
    )


def assigned_identity() -> Json:
    """Return AzureAssignedIdentity: which pod uses which identity, and whether Azure has assigned it."""
    fields = [
        Field(
            "azureIdentityRef", embedded(), "The AzureIdentity as it was when it was assigned.", old="AzureidentityRef"
        ),
        Field("azureBindingRef", embedded(), "The AzureIdentityBinding that matched.", old="AzurebindingRef"),
        Field("pod", TEXT, "Name of the pod.", old="Pod"),
        Field("podNamespace", TEXT, "Namespace of the pod.", old="PodNamespace"),
        Field("nodename", TEXT, "Node of the pod.", old="NodeName"),
        Field("replicas", OPTIONAL_COUNT, "Not used; kept because upstream wrote it.", old="Replicas"),
        UNUSED_METADATA,
    ]
    state = Field("status", TEXT, "Created, Assigned or Unassigned; an object without it is Assigned.", old="Status")
    return _definition(
        ("AzureAssignedIdentity", "azureassignedidentity", "azureassignedidentities"),
        "One pod's use of one AzureIdentity. Written by MIC, read by NMI; not for users to write.",
        {"spec": structure("Which pod uses which identity.", fields), "status": _status(state)},
        [
            _column("Pod", "spec.pod"),
            _column("PodNamespace", "spec.podNamespace"),
            _column("Node", "spec.nodename"),
            _column("Status", "status.status"),
        ],
    )


def exception() -> Json:
    """Return AzurePodIdentityException: which pods get tokens straight from the node's metadata service."""
    fields = [
        Field(
            "podLabels", LABELS, "A pod of this namespace with any one of these labels is excepted.", old="PodLabels"
        ),
        UNUSED_METADATA,
    ]
    return _definition(
        ("AzurePodIdentityException", "azurepodidentityexception", "azurepodidentityexceptions"),
        "Pods whose token requests go straight to the node's metadata service.",
        {"spec": structure("The excepted pods.", fields), "status": _status(Field("status", TEXT, "Not used."))},
        [],
    )


_TYPES = (
    "spec.type must be 0 (user-assigned managed identity), 1 (service principal with a secret) "
    "or 2 (service principal with a certificate)"
)


def _resource_id_rule(name: str) -> Rule:
    return Rule(
        f"(has(self.type) && self.type != 0) || !has(self.{name}) || self.{name} == ''"
        f" || self.{name}.matches('{RESOURCE_ID_FORM}')",
        f"spec.{name} of a managed identity must have the form /subscriptions/SUBSCRIPTION/resourcegroups/GROUP"
        "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME",
    )


def _non_empty(name: str, duty: str) -> Rule:
    return Rule(f"!has(self.{name}) || self.{name} != ''", f"spec.{name} must {duty}; it is empty")


def _status(*fields: Field) -> Json:
    common = [
        Field("availableReplicas", COUNT, "Always 1 on what MIC writes; kept for upstream.", old="AvailableReplicas"),
        Field("conditions", conditions(), "What is known about the object, for people and tools."),
        UNUSED_METADATA,
    ]
    return structure("What the daemons found.", [*fields, *common])


def _condition_columns(condition: str) -> list[Json]:
    """Return the columns of a condition: its status and reason, and its message with `-o wide`."""
    path = f'status.conditions[?(@.type=="{condition}")]'
    wide = {**_column("Message", f"{path}.message"), "priority": 1}
    return [_column(condition, f"{path}.status"), _column("Reason", f"{path}.reason"), wide]


def _column(name: str, path: str) -> Json:
    return {"name": name, "type": "string", "jsonPath": f".{path}"}


def _definition(names: tuple[str, str, str], meaning: str, properties: Json, columns: Iterable[Json]) -> Json:
    kind, singular, plural = names
    all_properties = {
        "apiVersion": {"description": "Version of the schema.", **TEXT},
        "kind": {"description": "Kind of the object.", **TEXT},
        "metadata": {"type": "object"},
        **properties,
    }
    age = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [*columns, age],
        "schema": {"openAPIV3Schema": {"description": meaning, "type": "object", "properties": all_properties}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}", "annotations": {"api-approved.kubernetes.io": "unapproved"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "singular": singular, "plural": plural},
            "versions": [version],
        },
    }
