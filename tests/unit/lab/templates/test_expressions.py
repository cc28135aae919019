"""The language of template expressions: their values, and the sentences about mistakes in them."""

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podidentity_lab.azure.templates import functions, jsonc
from podidentity_lab.azure.templates.budget import TemplateError
from podidentity_lab.azure.templates.expressions import Literal, Scope, evaluate, parse

GROUP = "/subscriptions/s/resourceGroups/rg"
SCOPED = Scope(
    {
        **functions.PURE,
        **functions.scope_functions("s", GROUP),
        "parameters": lambda arguments: {"name": "web", "list": [1, 2], "object": {"Key": {"inner": [7]}}}[
            arguments[0]
        ],
    }
)
IDENTITY = "Microsoft.ManagedIdentity/userAssignedIdentities"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("[[not an expression]", "[not an expression]"),
        ("[concat('it''s ', 'one', 2, true())]", "it's one2True"),
        ("[concat(createArray(1), parameters('list'))]", [1, 1, 2]),
        ("[parameters('object').key['INNER'][0]]", 7),
        ("[ToUpper ( Parameters( 'name' ) )]", "WEB"),
        ("[format('{0}-{{{1}}}', 'a', -1)]", "a-{-1}"),
        ("[if(equals('A', 'a'), 'same', variables('absent'))]", "same"),
        ("[if(false(), variables('absent'), null())]", None),
        ("[and(true(), not(false()), or(false(), true()))]", True),
        ("[union(createObject('a', 1), createObject('b', 2))]", {"a": 1, "b": 2}),
        ("[union(createArray(1, 2), createArray(2, 3))]", [1, 2, 3]),
        ("[contains(createObject('Key', 1), 'key')]", True),
        ("[contains('text', 'ex')]", True),
        ("[tryGet(parameters('object'), 'key', 'absent')]", None),
        ("[coalesce(null(), tryGet(parameters('object'), 'absent'), 'last')]", "last"),
        ("[split('a,b;c', createArray(',', ';'))]", ["a", "b", "c"]),
        ("[join(split('a,b', ','), '-')]", "a-b"),
        ("[substring('abcdef', 2, 3)]", "cde"),
        ("[bool('True')]", True),
        ("[bool(0)]", False),
        ("[div(-7, 2)]", -3),
        ("[mod(-7, 2)]", -1),
        ("[max(createArray(3, 9, 4))]", 9),
        ("[min(3, 9)]", 3),
        ("[first(range(5, 2))]", 5),
        ("[last('')]", None),
        ("[items(createObject('b', 2, 'a', 1))[0].key]", "a"),
        ("[flatten(createArray(createArray(1), createArray(2)))]", [1, 2]),
        ("[string(createObject('a', true()))]", '{"a":true}'),
        ("[base64ToString(base64('ü'))]", "ü"),
        ("[json('{\"a\": [1]}').a[0]]", 1),
        ("[empty(createArray())]", True),
        ("[array('x')]", ["x"]),
        ("[uriComponent('a b/c')]", "a%20b%2Fc"),
        ("[length(trim(' ab '))]", 2),
        ("[startsWith('Abc', 'aB')]", True),
        ("[replace('aXb', 'X', '-')]", "a-b"),
        ("[equals(1, true())]", False),
        (f"[resourceId('{IDENTITY}', 'web')]", f"{GROUP}/providers/{IDENTITY}/web"),
        (
            f"[resourceId('other', '{IDENTITY}', 'web')]",
            f"/subscriptions/s/resourceGroups/other/providers/{IDENTITY}/web",
        ),
        (f"[resourceId('s2', 'g', '{IDENTITY}', 'w')]", f"/subscriptions/s2/resourceGroups/g/providers/{IDENTITY}/w"),
        (
            "[resourceId('Microsoft.KeyVault/vaults/secrets', 'v', 'x')]",
            f"{GROUP}/providers/Microsoft.KeyVault/vaults/v/secrets/x",
        ),
        ("[subscriptionResourceId('Microsoft.Resources/resourceGroups', 'g')]", "/subscriptions/s/resourceGroups/g"),
        ("[subscriptionResourceId('s2', 'A.B/c', 'd')]", "/subscriptions/s2/providers/A.B/c/d"),
        ("[tenantResourceId('A.B/c', 'd')]", "/providers/A.B/c/d"),
        ("[extensionResourceId('/x', 'A.B/c', 'd')]", "/x/providers/A.B/c/d"),
    ],
)
def test_an_expression_yields_its_value(text: str, value: Any) -> None:
    """Names of functions and properties compare without case; `if` evaluates only the branch that counts."""
    assert evaluate(text, SCOPED) == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[concat('a'", "its syntax is wrong"),
        ("[concat('a') 'b']", "its syntax is wrong"),
        ("[concat('a' 'b')]", "its syntax is wrong"),
        ("[concat.('a')]", "its syntax is wrong"),
        ("[(1)]", "its syntax is wrong"),
        ("[a & b]", "its syntax is wrong"),
        ("[]", "its syntax is wrong"),
        ("[nothing()]", "The template function 'nothing' is not valid"),
        ("[if(true())]", "'if' takes 3 arguments"),
        ("[toLower(1)]", "'tolower' does not take (Integer)"),
        ("[substring('abc', 2, 5)]", "'substring' does not take (String, Integer, Integer)"),
        ("[guid(1)]", "'guid' does not take (Integer)"),
        ("[concat(createArray(1), 2)]", "'concat' does not take (Array, Integer)"),
        ("[div(1, 0)]", "'div' does not take"),
        ("[format('{0:D3}', 1)]", "The format '{0:D3}' is not valid"),
        ("[parameters('object').absent]", "property 'absent' doesn't exist, available are 'Key'"),
        ("[parameters('list')[2]]", "can't be evaluated on a Array"),
        ("[resourceId('Microsoft.KeyVault/vaults', 'a', 'b')]", "incorrect segment lengths"),
    ],
)
def test_what_is_wrong_is_one_sentence(text: str, sentence: str) -> None:
    """The sentence names the expression, the function or the property."""
    with pytest.raises(TemplateError) as error:
        evaluate(text if text.endswith("]") else f"{text}]", SCOPED)
    assert sentence in str(error.value)


def test_objects_may_contain_loops() -> None:
    """A `copy` list in an object makes one array for each entry; an inner loop sees the outer one's index."""
    inner = {"name": "inner", "count": 2, "input": "[add(mul(copyIndex('outer'), 10), copyIndex('inner', 1))]"}
    outer = {
        "name": "outer",
        "count": "[length(parameters('list'))]",
        "input": {"copy": [inner], "n": "[copyIndex('outer')]"},
    }
    assert evaluate({"copy": [outer], "copied": "x"}, SCOPED) == {
        "copied": "x",
        "outer": [{"n": 0, "inner": [1, 2]}, {"n": 1, "inner": [11, 12]}],
    }
    with pytest.raises(TemplateError, match="from 0 to 800"):
        evaluate({"copy": [{"name": "outer", "count": 801, "input": 1}]}, SCOPED)


def test_guids_and_unique_strings_are_the_same_for_the_same_texts() -> None:
    """A GUID is name-based (version 5); a unique string is valid at the end of a vault's name."""
    guids = [evaluate(f"[guid('{text}', 'b')]", SCOPED) for text in ("a", "a", "b")]
    assert (guids[0] == guids[1], guids[0] == guids[2], uuid.UUID(guids[0]).version) == (True, False, 5)
    first, second = (evaluate(f"[uniqueString('{text}')]", SCOPED) for text in ("a", "b"))
    assert first != second
    assert (len(first), first) == (13, evaluate("[uniqueString('a')]", SCOPED))
    assert first.isalnum()
    assert first == first.lower()


@given(st.text())
def test_a_quoted_text_is_itself(text: str) -> None:
    """Any text can be quoted by doubling its quotes."""
    quoted = text.replace("'", "''")
    assert parse(f"['{quoted}']") == Literal(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_is_read_as_json(value: Any) -> None:
    """Valid JSON is read as it is, including texts that look like comments or names."""
    assert jsonc.loads(json.dumps(value)) == value
    assert jsonc.loads(json.dumps(value, ensure_ascii=False, indent=1)) == value


def test_comments_bare_names_and_trailing_commas_are_read() -> None:
    """Comments, bare names and trailing commas are read, as azure-cli sends them from a template's file."""
    text = (
        '{properties: {"mode": "a//b", /* "x": , */ template:{ // the file\n"list": [1, 2,],\n"text": "two\nlines",}}}'
    )
    assert jsonc.loads(text) == {"properties": {"mode": "a//b", "template": {"list": [1, 2], "text": "two\nlines"}}}
    with pytest.raises(json.JSONDecodeError):
        jsonc.loads("{template: nothing}")
