"""Every error that the code raises, and every refusal that it answers with, has the form `what: why; do this`."""

import ast
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("src", "lab/src") for path in (ROOT / folder).rglob("*.py"))
OWN_ERRORS = "PodIdentityError"
ADVISED = {"UsageError", "ConfigurationError", "HostError", "LabError"}
"""Errors that somebody can mend at once, subclasses included: the sentence ends with how, after a semicolon."""
NOT_ADVISED = {"StepError": "what a step of the lab's demo saw in place of what it expected: the bug is ours"}
"""Subclasses of those that nobody who reads the sentence can mend, each with the reason."""
REFUSALS = {"Refusal": 1, "NoIdentity": 1, "NotReady": 1, "Unusable": 1}
"""Values that become an answer, an event or a condition, and which argument is the sentence."""
NAMES = re.compile(
    r"(\{|[^A-Za-z]|IMDS|ARM|MIC|NMI|Entra|Azure|Kubernetes|Secret|DaemonSet|ConfigMap|Endpoints|Lease|Pod|Retry-After|"
    r"HTTP|[A-Z][A-Z_]{3,}|PKCS)"
)
"""What a sentence may begin with in place of a small letter: a value, an option, a name of the field."""
WORDS_OF_OTHERS = {
    "Identity not found",
    "Required metadata header not specified",
    "Required query variable 'resource' is missing",
}
"""IMDS's own sentences: clients compare them."""


class Sentence(NamedTuple):
    """A sentence, the class of its error or refusal, and its place."""

    place: str
    name: str
    text: str


def error_classes(*roots: str) -> set[str]:
    """Return the names of all classes below `roots`, these included."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    names = set(roots)
    while more := {name for name, of in bases.items() if of & names} - names:
        names |= more
    return names


def texts(node: ast.expr, values: Mapping[str, Sequence[ast.expr]]) -> Iterator[str]:
    """Yield the texts that an expression can have, with {} for inserted values; `values` are those of its names."""
    match node:
        case ast.Constant(str() as text):
            yield text
        case ast.JoinedStr(parts):
            for words in itertools.product(*(tuple(part_texts(part, values)) for part in parts)):
                yield "".join(words)
        case ast.IfExp(body=first, orelse=second) | ast.BoolOp(values=[first, second]):
            yield from texts(first, values)
            yield from texts(second, values)
        case ast.Name(id=name):
            others = {key: value for key, value in values.items() if key != name}
            for value in values.get(name, ()):
                yield from texts(value, others)
        case ast.Call(func=ast.Name(id=name)):
            yield from texts(ast.Name(name), values)


def part_texts(part: ast.expr, values: Mapping[str, Sequence[ast.expr]]) -> Iterator[str]:
    """Yield what a part of an f-string can be: a text, the texts of an inserted name that has some, or {}."""
    inserted = part.value if isinstance(part, ast.FormattedValue) else part
    known = list(texts(inserted, values)) if isinstance(inserted, (ast.Constant, ast.Name)) else []
    yield from known or ["{}"]


def values_in(scope: ast.AST) -> dict[str, list[ast.expr]]:
    """Return what each plain name is set to within a function or a module."""
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                values.setdefault(name, []).append(value)
    return values


def returned(function: ast.AST) -> list[ast.expr]:
    """Return what a function returns, for functions that put a sentence together."""
    return [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]


def sentences() -> Iterator[Sentence]:
    """Yield each sentence in the code, also one in a variable or a constant."""
    positions = dict.fromkeys(error_classes(OWN_ERRORS), 0) | REFUSALS
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        constants = values_in(ast.Module([node for node in tree.body if isinstance(node, ast.Assign)], []))
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        constants |= {function.name: returned(function) for function in functions}
        for scope in (*functions, tree):
            values = constants | (values_in(scope) if scope is not tree else {})
            for node in ast.walk(scope):
                match node:
                    case ast.Call(func=ast.Name(id=name), args=arguments) if len(arguments) > positions.get(name, 99):
                        for text in texts(arguments[positions[name]], values):
                            yield Sentence(f"{path.relative_to(ROOT)}:{node.lineno}", name, text)


SENTENCES = sorted({sentence for sentence in sentences() if sentence.text and sentence.text not in WORDS_OF_OTHERS})


def test_an_error_is_one_sentence() -> None:
    """An error begins with a small letter or a name, and has no full stop, neither inside nor at the end."""
    broken = [
        f"{place}: {text}"
        for place, _, text in SENTENCES
        if text.endswith((".", "?", "!")) or re.search(r"[.?!] ", text) or not (text[0].islower() or NAMES.match(text))
    ]
    assert broken == []


def test_an_error_says_what_to_do() -> None:
    """After a semicolon an error says what to do, or it ends with another program's words."""
    advised = error_classes(*ADVISED) - set(NOT_ADVISED)
    silent = [
        f"{place}: {text}"
        for place, name, text in SENTENCES
        if name in advised and "; " not in text and not text.endswith(": {}")
    ]
    assert silent == []


def test_nearly_every_error_is_seen() -> None:
    """The two tests above can read at least nine of every ten errors and refusals; others pass on what was read."""
    names = {*error_classes(OWN_ERRORS), *REFUSALS}
    calls = sum(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and bool(node.args)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
    )
    assert len({place for place, _, _ in SENTENCES}) >= calls * 9 / 10
