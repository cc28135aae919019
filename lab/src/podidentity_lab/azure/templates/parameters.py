"""The parameters of a template: their values, as supplied or by default, and what a deployment shows of them."""

from collections.abc import Sequence
from typing import Any

from podidentity_lab.azure.templates import expressions, functions
from podidentity_lab.azure.templates.budget import TemplateError
from podidentity_lab.azure.templates.expressions import Function, Scope

Json = dict[str, Any]
SECURE = frozenset({"securestring", "secureobject"})


def lookup(noun: str, values: Json) -> Function:
    """Return `parameters()`, which finds a value by name; `noun` is for its refusals."""
    names = {name.lower(): name for name in values}

    def find(arguments: Sequence[Any]) -> Any:
        (name,) = arguments
        if name.lower() not in names:
            raise TemplateError(f"The template {noun} '{name}' is not found: declare it, or correct its name.")
        return values[names[name.lower()]]

    return find


def values_of(declarations: Json, parameters: Json, scope: Scope) -> Json:
    """Return all parameters' values. Defaults may refer to parameters that stand before them."""
    unknown = [name for name in parameters if name.lower() not in {key.lower() for key in declarations}]
    if unknown:
        message = (
            f"The template parameters '{', '.join(unknown)}' in the parameters file are not valid; they are not "
            "present in the original template and can therefore not be provided at deployment time. The only supported "
            f"parameters for this template are '{', '.join(declarations)}'."
        )
        raise TemplateError(message)
    supplied = {name.lower(): value for name, value in parameters.items()}
    values: Json = {}
    for name, declaration in declarations.items():
        values[name] = _parameter_value(name, declaration, supplied.get(name.lower()), values, scope)
    return values


def _parameter_value(name: str, declaration: Json, parameter: Any, values: Json, scope: Scope) -> Any:
    if isinstance(parameter, dict) and "reference" in parameter:
        raise TemplateError(
            f"The parameter '{name}' refers to a secret of a vault, which the lab does not read: give its value."
        )
    if isinstance(parameter, dict) and "value" in parameter:
        value = parameter["value"]
    elif "defaultValue" in declaration:
        value = expressions.evaluate(
            declaration["defaultValue"], scope.with_functions({"parameters": lookup("parameter", values)})
        )
    elif declaration.get("nullable"):
        return None
    else:
        raise TemplateError(
            f"The value for the template parameter '{name}' is not provided. Please see "
            "https://aka.ms/resource-manager-parameter-files for usage details."
        )
    if value is None and declaration.get("nullable"):
        return None
    if "type" in declaration:
        functions.check_type(name, str(declaration["type"]), value)
    _check_limits(name, declaration, value)
    return value


def _check_limits(name: str, declaration: Json, value: Any) -> None:
    choices = declaration.get("allowedValues")
    if choices is not None and value not in choices:
        texts = ",".join(functions.text_of(choice) for choice in choices)
        message = (
            f"The provided value for the template parameter '{name}' is not valid. The parameter value "
            f"is not part of the allowed value(s): '{texts}'."
        )
        raise TemplateError(message)
    size = value if isinstance(value, int) else len(value)
    suffix = "Value" if isinstance(value, int) else "Length"
    minimum, maximum = declaration.get(f"min{suffix}", size), declaration.get(f"max{suffix}", size)
    if not minimum <= size <= maximum:
        message = (
            f"The provided value for the template parameter '{name}' is not valid: its {suffix.lower()} {size} is not "
            f"from {minimum} to {maximum}."
        )
        raise TemplateError(message)


def visible(declarations: Json, values: Json) -> Json:
    """Return the parameters as a deployment shows them: the values of secure ones never."""
    entries: Json = {}
    for name, declaration in declarations.items():
        kind = str(declaration.get("type", ""))
        entries[name] = {"type": shown_type(kind) or expressions.type_name(values[name])}
        if kind.lower() not in SECURE:
            entries[name]["value"] = values[name]
    return entries


def shown_type(kind: str) -> str:
    """Return a declared type as a deployment shows it."""
    return {"securestring": "SecureString", "secureobject": "SecureObject"}.get(kind.lower(), kind.capitalize())
