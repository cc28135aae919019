"""What a template deploys: its parameters' values, and its resources in the order in which they can be made.

Types, names, conditions and loops are evaluated here; bodies and outputs are left to `expressions.evaluate`, with the
plan's functions and a `reference`, when what they refer to is there. Structure: learn.microsoft.com/azure/
azure-resource-manager/templates/syntax.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from podidentity_lab.azure.templates import expressions, functions
from podidentity_lab.azure.templates import parameters as template_parameters
from podidentity_lab.azure.templates.budget import Budget, TemplateError
from podidentity_lab.azure.templates.expressions import Function, Scope

Json = dict[str, Any]
MOST_RESOURCES = 800  # learn.microsoft.com/azure/azure-resource-manager/templates/best-practices#template-limits
DEPLOYMENT_TYPE = "Microsoft.Resources/deployments"
_NO_BODY = {
    "type",
    "apiVersion",
    "name",
    "dependsOn",
    "condition",
    "copy",
    "scope",
    "resources",
    "existing",
    "comments",
}
_NO_BODY |= {"subscriptionId", "resourceGroup", "import", "metadata"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a template is deployed: `scope` is a resource group's ID, or the subscription's.

    `values` are the results of `subscription()`, `resourceGroup()`, `deployment()`, `tenant()` and `environment()`, by
    lower-case name; `defaults` are functions for default values of parameters alone (`utcNow`, `newGuid`).
    A nested deployment shares the `budget` of the one that it is in.
    """

    subscription_id: str
    scope: str
    values: Mapping[str, Json]
    defaults: Mapping[str, Function] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource to deploy: its ID, type, name, API version and body, whose expressions are evaluated in `scope`.

    `label` is its symbolic name, "" without one, `loop` the name of the loop that it comes from. One that is not
    `is_deployed` is only referred to: its condition does not hold, or it is an `existing` one. `dependencies` are texts
    of `dependsOn` (IDs, names, or labels), and with a `?` before them those of `reference`.
    """

    id: str
    kind: str
    name: str
    version: str
    body: Json
    scope: Scope
    label: str = ""
    loop: str = ""
    is_deployed: bool = True
    dependencies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Resources in order, the values of parameters (secure ones without their value), and what outputs are made of."""

    resources: tuple[Resource, ...]
    parameters: Json
    outputs: Json
    scope: Scope


def plan(template: Json, parameters: Json, place: Place) -> Plan:
    """Return what a template deploys with parameters (`{name: {"value": ...}}`). Raises `TemplateError`."""
    if not isinstance(template.get("resources"), list | dict):
        raise TemplateError("The template is not valid: it has no 'resources'.")
    base = Scope(
        {
            **functions.PURE,
            **functions.scope_functions(place.subscription_id, place.scope),
            **{name: _constant(value) for name, value in place.values.items()},
        },
        place.budget,
    )
    base = base.with_functions(_user_functions(template, base))
    declarations = template.get("parameters") or {}
    values = template_parameters.values_of(declarations, parameters, base.with_functions(place.defaults))
    scope = base.with_functions({"parameters": template_parameters.lookup("parameter", values)})
    scope = scope.with_functions({"variables": _variables(template.get("variables") or {}, scope)})
    resources: list[Resource] = []
    for label, entry in _entries(template):
        resources += _resources(label, entry, scope, place)
        if len(resources) > MOST_RESOURCES:
            raise TemplateError(f"The template has more than {MOST_RESOURCES} resources, loops included.")
    visible = template_parameters.visible(declarations, values)
    return Plan(_in_order(resources, scope), visible, template.get("outputs") or {}, scope)


def outputs(content: Plan, reference: Function) -> Json:
    """Return a deployment's outputs as ARM shows them. Raises `TemplateError`."""
    scope = content.scope.with_functions({"reference": reference})
    values: Json = {}
    for name, output in content.outputs.items():
        if expressions.evaluate(output.get("condition", True), scope) is False:
            continue
        kind = str(output.get("type", ""))
        value = (
            expressions.expand(output["copy"], scope)
            if "copy" in output
            else expressions.evaluate(output.get("value"), scope)
        )
        if kind and not (value is None and output.get("nullable")):
            functions.check_type(name, kind, value)
        if kind.lower() in template_parameters.SECURE:
            values[name] = {"type": template_parameters.shown_type(kind)}
        else:
            values[name] = {
                "type": template_parameters.shown_type(kind) or expressions.type_name(value),
                "value": value,
            }
    return values


def body(resource: Resource, reference: Function) -> Json:
    """Return what is sent to make a resource. Raises `TemplateError`.

    A nested deployment with `expressionEvaluationOptions.scope: inner` keeps its template as it stands.
    """
    scope = resource.scope.with_functions({"reference": reference})
    if resource.kind.lower() != DEPLOYMENT_TYPE.lower() or not _is_inner(resource.body):
        return _object(expressions.evaluate(resource.body, scope))
    properties = resource.body["properties"]
    fields = {key: value for key, value in properties.items() if key != "template"}
    evaluated = _object(expressions.evaluate({**resource.body, "properties": fields}, scope))
    evaluated["properties"]["template"] = properties["template"]
    return evaluated


def _is_inner(content: Json) -> bool:
    options = (content.get("properties") or {}).get("expressionEvaluationOptions") or {}
    return str(options.get("scope", "")).lower() == "inner"


def _object(value: Any) -> Json:
    if not isinstance(value, dict):
        raise TemplateError("The template is not valid: a resource must be an object.")
    return value


def _constant(value: Json) -> Function:
    return lambda _arguments: value


def _variables(declarations: Json, scope: Scope) -> Function:
    """Return `variables()`: each variable is evaluated when it is first asked for."""
    loops = {entry["name"]: entry for entry in declarations.get("copy") or []}
    names = {name.lower(): name for name in (*declarations, *loops)}
    values: Json = {}
    open_names: list[str] = []

    def find(arguments: Sequence[Any]) -> Any:
        (text,) = arguments
        name = names.get(text.lower())
        if name is None or name == "copy":
            raise TemplateError(f"The template variable '{text}' is not found: declare it, or correct its name.")
        if name in open_names:
            raise TemplateError(f"The template variable '{text}' depends on itself.")
        if name not in values:
            open_names.append(name)
            inner = scope.with_functions({"variables": find})
            values[name] = (
                expressions.expand(loops[name], inner)
                if name in loops
                else expressions.evaluate(declarations[name], inner)
            )
            open_names.remove(name)
        return values[name]

    return find


def _user_functions(template: Json, base: Scope) -> dict[str, Function]:
    """Return the functions that a template defines; each sees its own parameters, and the others, but no variables."""
    user_functions: dict[str, Function] = {}

    def find_scope() -> Scope:
        return base.with_functions(user_functions)

    for section in template.get("functions") or []:
        for name, definition in section["members"].items():
            user_functions[f"{section['namespace']}.{name}".lower()] = _user_function(definition, find_scope)
    return user_functions


def _user_function(definition: Json, find_scope: Callable[[], Scope]) -> Function:
    names = [parameter["name"] for parameter in definition.get("parameters") or []]

    def call(arguments: Sequence[Any]) -> Any:
        values = dict(zip(names, arguments, strict=True))
        parameters = template_parameters.lookup("parameter", values)
        return expressions.evaluate(
            definition["output"]["value"], find_scope().with_functions({"parameters": parameters})
        )

    return call


def _entries(template: Json) -> Iterator[tuple[str, Json]]:
    """Yield each resource with its symbolic name, children (`resources` in a resource) included."""
    content = template["resources"]
    for label, entry in content.items() if isinstance(content, dict) else (("", entry) for entry in content):
        yield from _family(label, _object(entry))


def _family(label: str, entry: Json) -> Iterator[tuple[str, Json]]:
    yield label, entry
    for child in entry.get("resources") or []:
        name, parent = str(child["name"]), str(entry["name"])
        names = [
            f"'{part.replace(chr(39), chr(39) * 2)}'" if not expressions.is_expression(part) else part[1:-1]
            for part in (parent, name)
        ]
        kind = f"{entry['type']}/{child['type']}"
        yield from _family("", {**child, "type": kind, "name": f"[format('{{0}}/{{1}}', {', '.join(names)})]"})


def _resources(label: str, entry: Json, scope: Scope, place: Place) -> Iterator[Resource]:
    """Yield the resources of one entry: several of a loop."""
    loop = entry.get("copy")
    if not isinstance(loop, dict):
        yield _resource(label, entry, scope, place)
        return
    for number in range(expressions.loop_count(loop, scope)):
        index = expressions.copy_index(str(loop.get("name", "")), number, scope)
        yield _resource(label, entry, scope.with_functions({"copyindex": index}), place)


def _resource(label: str, entry: Json, scope: Scope, place: Place) -> Resource:
    for name in ("type", "name", "apiVersion"):
        if not entry.get(name):
            raise TemplateError(f"The template resource '{entry.get('name', label)}' is not valid: it has no '{name}'.")
    condition = expressions.evaluate(entry.get("condition", True), scope)
    kind, name = str(entry["type"]), str(expressions.evaluate(entry["name"], scope))
    base = _base(entry, scope, place)
    dependencies = [str(text) for text in expressions.evaluate(entry.get("dependsOn") or [], scope)]
    dependencies += _implicit_dependencies(entry, scope)
    loop = entry.get("copy")
    return Resource(
        id=functions.resource_id(base, kind, name.split("/")),
        kind=kind,
        name=name,
        version=str(entry["apiVersion"]),
        body={key: value for key, value in entry.items() if key not in _NO_BODY},
        scope=scope,
        label=label,
        loop=str(loop.get("name", "")) if isinstance(loop, dict) else "",
        is_deployed=condition is not False and entry.get("existing") is not True,
        dependencies=tuple(dependencies),
    )


def _base(entry: Json, scope: Scope, place: Place) -> str:
    """Return the scope that a resource is made at: its own, that of a nested deployment, or the template's."""
    subscription = expressions.evaluate(entry.get("subscriptionId", place.subscription_id), scope)
    if entry.get("resourceGroup"):
        return f"/subscriptions/{subscription}/resourceGroups/{expressions.evaluate(entry['resourceGroup'], scope)}"
    target = str(expressions.evaluate(entry.get("scope", ""), scope))
    if not target:
        return f"/subscriptions/{subscription}" if "subscriptionId" in entry else place.scope
    if target.startswith("/"):
        return target.rstrip("/")
    namespace, *segments = target.split("/")  # Microsoft.KeyVault/vaults/NAME, as extension resources have it
    return f"{place.scope}/providers/{'/'.join((namespace, *segments))}"


def _implicit_dependencies(entry: Json, scope: Scope) -> list[str]:
    """Return what the body refers to by `reference`, as far as that can be said before anything is deployed."""
    content = {key: value for key, value in entry.items() if key not in _NO_BODY}
    if _is_inner(content):
        content = {**content, "properties": {**content["properties"], "template": None}}
    texts = []
    for call in expressions.calls(content, "reference"):
        try:
            texts.append(f"?{expressions.evaluate_argument(call, 0, scope)}")
        except (TemplateError, IndexError):  # depends on what is deployed, and is known only then
            continue
    return texts


def _in_order(resources: list[Resource], scope: Scope) -> tuple[Resource, ...]:
    """Return the resources so that each stands behind those that it depends on. Raises `TemplateError`.

    A dependency that begins with `?` counts only if it is part of the template.
    """
    sorter: TopologicalSorter[int] = TopologicalSorter()
    ids: set[str] = set()
    numbers_by_name: dict[str, list[int]] = {}
    for number, resource in enumerate(resources):
        if resource.id.lower() in ids:
            raise TemplateError(f"The resource '{resource.id}' is defined more than once in the template.")
        ids.add(resource.id.lower())
        sorter.add(number)
        for text in resource.dependencies:
            name = text.removeprefix("?")
            if name not in numbers_by_name:
                scope.budget.spend(len(resources))
                numbers_by_name[name] = [index for index, item in enumerate(resources) if is_named(item, name)]
            numbers = numbers_by_name[name]
            if not numbers and name == text:
                raise TemplateError(
                    f"The resource '{name}' is not defined in the template. Please see "
                    "https://aka.ms/arm-template for usage details."
                )
            scope.budget.spend(len(numbers))
            sorter.add(number, *(index for index in numbers if index != number))
    try:
        return tuple(resources[number] for number in sorter.static_order())
    except CycleError as error:
        circle = [resources[number] for number in error.args[1]]
        names = " -> ".join(resource.name for resource in circle)
        raise TemplateError(
            f"Circular dependency detected on resource: '{circle[0].id}' ({names}). Please see "
            "https://aka.ms/arm-syntax-resources for usage details."
        ) from None


def is_named(resource: Resource, text: str) -> bool:
    """Whether a text of `dependsOn` or `reference` names a resource: by label, loop, ID, or name."""
    if text in {resource.label, resource.loop}:
        return bool(text)
    lower_text = text.lower()
    return lower_text in {resource.id.lower(), resource.name.lower(), f"{resource.kind}/{resource.name}".lower()} or (
        "/" in text and resource.id.lower().endswith(f"/{lower_text}")
    )
