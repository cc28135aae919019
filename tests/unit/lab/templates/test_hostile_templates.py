"""Templates that mean far more than they say: each ends in a sentence, after little time and memory."""

import json
import resource
from collections.abc import Iterator
from typing import Any

import pytest

from podidentity_lab.azure import bodies
from podidentity_lab.azure.templates import functions, jsonc, planning
from podidentity_lab.azure.templates.budget import UNITS, Budget, TemplateError
from podidentity_lab.azure.templates.expressions import Scope, evaluate

SUBSCRIPTION = "/subscriptions/s"
GROUP = f"{SUBSCRIPTION}/resourceGroups/rg"

IDENTITY = {
    "type": "Microsoft.ManagedIdentity/userAssignedIdentities",
    "apiVersion": "2023-01-31",
    "location": "westeurope",
}
ADDRESS_SPACE = 2 * 2**30  # bytes, beyond what the process has: an attack that works ends in MemoryError


@pytest.fixture(autouse=True)
def small_memory() -> Iterator[None]:
    """What is not bounded fails, rather than taking this machine's memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statistics:  # noqa: PTH123  # no file of a file system
        size = int(statistics.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def place(units: int = UNITS) -> planning.Place:
    """Return a resource group as the place of a deployment, with a budget of its own."""
    return planning.Place("s", GROUP, {"resourcegroup": {"id": GROUP}}, budget=Budget(units))


def doubled(first: str, step: str, times: int) -> dict[str, str]:
    """Return variables `v0`, `v1`, ... each of which is made of the one before by `step`, a format with two `{0}`."""
    variables = {"v0": first}
    for number in range(times):
        lookup = f"variables('v{number}')"
        variables[f"v{number + 1}"] = f"[{step.format(lookup)}]"
    return variables


def outputs_of(template: dict[str, Any]) -> Any:
    """Return what a template's outputs are, by a tenth of the common budget; there is nothing to refer to."""
    content = planning.plan({"resources": [], **template}, {}, place(UNITS // 10))
    return planning.outputs(content, lambda _arguments: {})


def loops(levels: int, content: Any) -> dict[str, Any]:
    """Return loops of 800 turns in one another."""
    for level in range(levels):
        content = {"copy": [{"name": f"l{level}", "count": 800, "input": content}]}
    return {"copy": [content["copy"][0]]}


EXPRESSIONS: list[tuple[str, dict[str, Any], str]] = [
    ("text doubled", doubled("xxxxxxxxxx", "concat({0}, {0})", 60), "the limit is 131072"),
    ("text formatted", doubled("xxxxxxxxxx", "format('{{0}}{{0}}', {0})", 60), "the limit is 131072"),
    ("text joined", doubled("xxxxxxxxxx", "join(createArray({0}, {0}), {0})", 60), "the limit is 131072"),
    ("text replaced", doubled("xxxxxxxxxx", "replace({0}, 'x', {0})", 9), "the limit is 131072"),
    ("lists doubled", doubled("x", "createArray({0}, {0})", 60), "too large"),
    ("objects doubled", doubled("x", "createObject('a', {0}, 'b', {0})", 60), "too large"),
    ("numbers squared", doubled("[mul(99999, 99999)]", "mul({0}, {0})", 60), "64 bits"),
    ("a long number", {"v60": f"[add(1, {'9' * 20})]"}, "syntax is wrong"),
    ("a range", {"v60": "[range(0, 1000000000)]"}, "0 to 10000"),
    ("a range of many", {"v60": "[range(0, -5)]"}, "0 to 10000"),
    ("ranges of ranges", doubled("[range(0, 10000)]", "concat({0}, {0})", 40), "too large"),
    ("a deep call", {"v60": f"[{'not(' * 3000}true(){')' * 3000}]"}, "deeply"),
    ("a deep text of JSON", {"v60": f"[json('{'[' * 5000}{']' * 5000}')]"}, "'json' does not take"),
    ("half a letter", {"v60": "[json('\"\\ud800\"')]"}, "'json' does not take"),
    ("no number", {"v60": "[json('NaN')]"}, "'json' does not take"),
    ("a long expression", {"v60": f"[concat('x'{', 1' * 9000})]"}, "the limit is 24576"),
    ("a circle", {"v60": "[variables('v61')]", "v61": "[variables('v60')]"}, "depends on itself"),
    ("a key that is none", {"v60": "[createObject(1, 2).x]"}, "'createobject' does not take"),
    ("marks of a split", {"v60": f"[split('{'a' * 9000}', createArray('{'a' * 9000}b', 'c'))]"}, "'split'"),
    ("a division", {"v60": "[div(1, 0)]"}, "'div' does not take"),
]


@pytest.mark.parametrize(("variables", "sentence"), [case[1:] for case in EXPRESSIONS], ids=[c[0] for c in EXPRESSIONS])
def test_expressions_that_grow_end_in_a_sentence(variables: dict[str, Any], sentence: str) -> None:
    """A variable of each, the last one asked for: the limit that it meets is named."""
    last = "v60" if "v60" in variables else list(variables)[-1]
    template = {"variables": variables, "outputs": {"o": {"type": "string", "value": f"[string(variables('{last}'))]"}}}
    with pytest.raises((TemplateError, RecursionError)) as error:
        outputs_of(template)
    assert sentence in str(error.value) or (sentence == "deeply" and isinstance(error.value, RecursionError))


def test_loops_in_loops_end_in_a_sentence() -> None:
    """800 turns of 800 turns of 800 turns, which make only letters: as values of variables and of outputs."""
    with pytest.raises(TemplateError, match="too large"):
        outputs_of(
            {"variables": loops(3, "x"), "outputs": {"o": {"type": "int", "value": "[length(variables('l2'))]"}}}
        )
    copy = {"count": 800, "input": loops(2, "x")}
    with pytest.raises(TemplateError, match="too large"):
        outputs_of({"outputs": {"o": {"type": "array", "copy": copy}}})


def test_functions_of_a_template_that_call_one_another_end() -> None:
    """Each calls the one before twice: forty of them would take years. One that calls itself ends as well."""
    members = {"f0": {"output": {"value": "x", "type": "string"}}}
    for number in range(40):
        call = f"n.f{number}()"
        members[f"f{number + 1}"] = {"output": {"value": f"[if(equals({call}, {call}), 'x', 'y')]", "type": "string"}}
    template = {
        "functions": [{"namespace": "n", "members": members}],
        "outputs": {"o": {"type": "string", "value": "[n.f40()]"}},
    }
    with pytest.raises(TemplateError, match="too large"):
        outputs_of(template)
    members["f0"]["output"]["value"] = "[n.f0()]"
    with pytest.raises(RecursionError):
        outputs_of(template)


def test_resources_are_counted_loops_included() -> None:
    """800 in one template, as in Azure: in one loop there are no more, and in two there are not 800 each."""
    looped = {**IDENTITY, "name": "[concat('a', copyIndex())]", "copy": {"name": "l", "count": 800}}
    assert len(planning.plan({"resources": [looped]}, {}, place()).resources) == 800
    with pytest.raises(TemplateError, match="more than 800 resources"):
        planning.plan({"resources": [looped, {**looped, "name": "[concat('b', copyIndex())]"}]}, {}, place())


def test_many_dependencies_are_found_quickly() -> None:
    """Each of 800 resources waits for the one before. Five thousand other names to look for are too many."""
    resources = [
        {**IDENTITY, "name": f"a{number}", "dependsOn": [f"{IDENTITY['type']}/a{number - 1}"] if number else []}
        for number in range(800)
    ]
    content = planning.plan({"resources": resources}, {}, place())
    assert [resource.name for resource in content.resources] == [f"a{number}" for number in range(800)]
    spellings = [
        "".join(letter.upper() if number >> bit & 1 else letter for bit, letter in enumerate("userassignedids"))
        for number in range(5000)
    ]
    resources[1]["type"] = "Microsoft.ManagedIdentity/userassignedids"
    resources[2]["dependsOn"] = [f"Microsoft.ManagedIdentity/{text}/a1" for text in spellings]
    with pytest.raises(TemplateError, match="too large"):
        planning.plan({"resources": resources}, {}, place())


@pytest.mark.parametrize(
    "template",
    [
        {"resources": [5]},
        {"resources": [{**IDENTITY, "name": "a", "resources": [5]}]},
        {"resources": [{**IDENTITY, "name": "a", "copy": {"count": True}}]},
        {"resources": [], "parameters": [1]},
        {"resources": [], "parameters": {"p": 5}},
        {"resources": [], "parameters": {"p": {"type": "string", "defaultValue": 5, "minLength": "x"}}},
        {"resources": [], "variables": [1]},
        {"resources": [], "functions": [{}]},
        {"resources": [], "outputs": {"o": {"value": {"copy": [{"input": 1}]}}}},
        {"resources": [], "outputs": [5]},
        {"resources": [{**IDENTITY, "name": ["a"], "dependsOn": 5}]},
    ],
)
def test_a_template_of_another_form_is_refused(template: dict[str, Any]) -> None:
    """Whatever stands where something else belongs is one of the errors that a deployment turns into a sentence."""
    with pytest.raises((TemplateError, AttributeError, LookupError, TypeError, ValueError)):
        planning.outputs(planning.plan(template, {}, place()), lambda _arguments: {})


def test_what_a_large_template_says_is_computed() -> None:
    """The limits are far from what people write: 800 resources with a hundred expressions each."""
    tags = {f"t{number}": "[concat(resourceGroup().id, '-', copyIndex())]" for number in range(100)}
    looped = {**IDENTITY, "name": "[concat('a', copyIndex())]", "copy": {"name": "l", "count": 800}, "tags": tags}
    content = planning.plan({"resources": [looped]}, {}, place())
    bodies_of_all = [planning.body(entry, lambda _arguments: {}) for entry in content.resources]
    assert bodies_of_all[-1]["tags"]["t99"] == f"{GROUP}-799"


@pytest.mark.parametrize(
    "text",
    [
        '"' + '\\"' * 200_000,
        '"' * 199_999 + "\\",
        "/*" * 200_000,
        "a" * 400_000,
        "a" + " " * 400_000,
        ", " * 200_000,
        "[" * 200_000,
        '{"a":' * 100_000,
        "[NaN]",
        "[1e999]",
        "[-Infinity]",
        '["\\ud800"]',
        "9" * 5000,
    ],
    ids=lambda text: f"{text[:6]}...{len(text)}",
)
def test_bodies_that_are_no_json_are_refused_at_once(text: str) -> None:
    """Comments, texts, names and brackets without an end: the reader looks at each letter once."""
    with pytest.raises(ValueError, match=r"."):
        jsonc.loads(text)


def test_json_of_common_depth_and_both_halves_of_a_letter_is_read() -> None:
    """200 levels are, 201 are not."""
    deepest = "[" * bodies.DEEPEST + "]" * bodies.DEEPEST
    assert json.dumps(bodies.loads(deepest)) == deepest
    with pytest.raises(ValueError, match="200 levels"):
        bodies.loads(f"[{deepest}]")
    assert bodies.loads('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


def test_a_union_keeps_the_order_and_is_quick() -> None:
    """Each value once, where it stood first; ten thousand of them take no ten thousand comparisons each."""
    scope = Scope(functions.PURE, Budget())
    assert evaluate("[union(createArray(1, 2), createArray(1, 3))]", scope) == [1, 2, 3]
    assert len(evaluate("[union(range(0, 10000), range(5000, 10000))]", scope)) == 15_000


def test_large_numbers_are_divided_exactly() -> None:
    """64 bits are more than a floating-point number holds."""
    scope = Scope(functions.PURE)
    assert evaluate("[div(9007199254740993, 1)]", scope) == 9_007_199_254_740_993
    assert evaluate("[mod(9007199254740993, 2)]", scope) == 1
    assert evaluate("[mod(-7, 2)]", scope) == -1
