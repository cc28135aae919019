"""The expressions of ARM templates: texts in brackets, such as `[concat(parameters('name'), '-1')]`.

Grammar: literals (`'text'`, in which `''` is a quote, and whole numbers), function calls, and what follows them:
`.name` and `[index]`. Names of functions and of properties compare without case. `[[` begins a text that is no
expression. Reference: learn.microsoft.com/azure/azure-resource-manager/templates/template-expressions.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from podidentity_lab.azure.templates.budget import LONGEST_EXPRESSION, Budget, TemplateError

Function = Callable[[Sequence[Any]], Any]
_TOKEN = re.compile(r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?[0-9]+)|(?P<name>[A-Za-z_]\w*)|(?P<mark>[()\[\].,]))")

_UNITS_OF_A_SCOPE = 10
_CHARACTERS_OF_A_UNIT = 32  # of an expression that is parsed
_LONGEST_LIST = 1000  # characters of names in a sentence
_DIGITS = 19  # of the largest number


@dataclass(frozen=True, slots=True)
class Literal:
    """A text or a whole number."""

    value: str | int


@dataclass(frozen=True, slots=True)
class Call:
    """A function call. `name` is lower case; a user's function has its namespace before it (`ns.name`)."""

    name: str
    arguments: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A property or an element of a value: `base.key` or `base[key]`."""

    base: "Node"
    key: "Node"


Node = Literal | Call | Member


@dataclass(frozen=True, slots=True)
class Scope:
    """The functions that expressions may call, by lower-case name, and the budget of the template that they are in."""

    functions: Mapping[str, Function]
    budget: Budget = field(default_factory=Budget)

    def with_functions(self, functions: Mapping[str, Function]) -> "Scope":
        """Return a scope with more functions, or others in their place, and the same budget."""
        self.budget.spend(_UNITS_OF_A_SCOPE)
        return Scope({**self.functions, **functions}, self.budget)


def is_expression(text: str) -> bool:
    """Whether a text of a template is an expression."""
    return text.startswith("[") and text.endswith("]") and not text.startswith("[[")


@lru_cache(maxsize=4096)
def parse(text: str) -> Node:
    """Return the tree of an expression, brackets included. Raises `TemplateError`."""
    if len(text) > LONGEST_EXPRESSION:
        message = f"The language expression '{text[:40]}...' is too long: the limit is {LONGEST_EXPRESSION} characters."
        raise TemplateError(message)
    parser = _Parser(text)
    node = parser.expression()
    if parser.position != len(parser.tokens):
        raise parser.error()
    return node


def evaluate(value: Any, scope: Scope) -> Any:
    """Return a value of a template with all its expressions replaced. Raises `TemplateError`.

    Objects may contain `copy` lists, which make one array each (property iteration).
    """
    scope.budget.spend(1)
    match value:
        case str() if is_expression(value):
            scope.budget.spend(len(value) // _CHARACTERS_OF_A_UNIT)
            return scope.budget.charge(_evaluate_node(parse(value), scope))
        case str():
            return value[1:] if value.startswith("[[") else value
        case list():
            return [evaluate(item, scope) for item in value]
        case dict():
            fields = {key: evaluate(item, scope) for key, item in value.items() if not _is_iteration(key, item)}
            for key, item in value.items():
                if _is_iteration(key, item):
                    fields |= {_loop_name(entry): expand(entry, scope) for entry in item}
            return fields
    return value


def expand(iteration: Mapping[str, Any], scope: Scope) -> list[Any]:
    """Return the array of an iteration: its `input`, evaluated `count` times with a `copyIndex` of its own."""
    name = str(iteration.get("name", ""))
    return [
        evaluate(iteration["input"], scope.with_functions({"copyindex": copy_index(name, number, scope)}))
        for number in range(loop_count(iteration, scope))
    ]


def loop_count(iteration: Mapping[str, Any], scope: Scope) -> int:
    """Return how often a loop runs: 0 to 800 times, as in Azure. Raises `TemplateError`."""
    count = evaluate(iteration.get("count"), scope)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 800:
        raise TemplateError(f"The copy count of '{iteration.get('name', '')}' must be a number from 0 to 800.")
    return count


def copy_index(name: str, number: int, scope: Scope) -> Function:
    """Return `copyIndex([name], [offset])` for turn `number` of the loop `name`; outer loops go on having theirs."""
    outer = scope.functions.get("copyindex")

    def index(arguments: Sequence[Any]) -> Any:
        names = [argument for argument in arguments if isinstance(argument, str)]
        if names and names[0].lower() != name.lower() and outer is not None:
            return outer(arguments)
        return number + sum(argument for argument in arguments if isinstance(argument, int))

    return index


def calls(value: Any, name: str) -> Iterator[Call]:
    """Yield all calls of the function `name` (lower case) in a value of a template."""
    match value:
        case str() if is_expression(value):
            yield from _calls_in(parse(value), name)
        case list():
            for item in value:
                yield from calls(item, name)
        case dict():
            for item in value.values():
                yield from calls(item, name)


def evaluate_argument(call: Call, number: int, scope: Scope) -> Any:
    """Return the value of one argument of a call. Raises `TemplateError`."""
    return _evaluate_node(call.arguments[number], scope)


def member(base: Any, key: Any) -> Any:
    """Return a property (by name, without case) or an element (by number). Raises `TemplateError`."""
    if isinstance(base, dict) and isinstance(key, str):
        if key in base:
            return base[key]
        names = {name.lower(): name for name in base}
        if key.lower() in names:
            return base[names[key.lower()]]
        properties = ", ".join(base)[:_LONGEST_LIST]
        raise TemplateError(f"The language expression property '{key}' doesn't exist, available are '{properties}'.")
    if isinstance(base, list | str) and isinstance(key, int) and 0 <= key < len(base):
        return base[key]
    raise TemplateError(f"The language expression property '{key}' can't be evaluated on a {type_name(base)}.")


def type_name(value: Any) -> str:
    """Return what ARM calls the type of a value."""
    names = {bool: "Boolean", int: "Integer", str: "String", list: "Array", dict: "Object", type(None): "Null"}
    return names.get(type(value), "Float")


def _loop_name(iteration: Mapping[str, Any]) -> str:
    name = iteration.get("name")
    if not isinstance(name, str):
        raise TemplateError("The template is not valid: a copy loop has no 'name'.")
    return name


def _is_iteration(key: str, item: Any) -> bool:
    return (
        key == "copy" and isinstance(item, list) and all(isinstance(entry, dict) and "input" in entry for entry in item)
    )


def _evaluate_node(node: Node, scope: Scope) -> Any:
    """Return the value of a node.

    Arguments are charged before a call, since a function makes about as much as it gets, and the few that can make more
    look first. What is only looked up costs nothing until it is used.
    """
    scope.budget.spend(1)
    match node:
        case Literal(value):
            return value
        case Member(base, key):
            return member(_evaluate_node(base, scope), _evaluate_node(key, scope))
        case Call("if", arguments):  # only the branch that counts is evaluated: the other one may not be there
            if len(arguments) != 3:
                raise TemplateError("The template function 'if' takes 3 arguments.")
            branch = arguments[1] if _evaluate_node(arguments[0], scope) is True else arguments[2]
            return _evaluate_node(branch, scope)
    function = scope.functions.get(node.name)
    if function is None:
        raise TemplateError(f"The template function '{node.name}' is not valid: the lab does not know it here.")
    values = [scope.budget.charge(_evaluate_node(argument, scope)) for argument in node.arguments]
    try:
        return function(values)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        kinds = ", ".join(type_name(value) for value in values)[:_LONGEST_LIST]
        raise TemplateError(f"The template function '{node.name}' does not take ({kinds}).") from None


def _calls_in(node: Node, name: str) -> Iterator[Call]:
    match node:
        case Call():
            if node.name == name:
                yield node
            for argument in node.arguments:
                yield from _calls_in(argument, name)
        case Member(base, key):
            yield from _calls_in(base, name)
            yield from _calls_in(key, name)


class _Parser:
    """Recursive descent over the tokens between an expression's brackets."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        self.position = 0
        body, start = text[1:-1].rstrip(), 0
        while start < len(body):
            match = _TOKEN.match(body, start)
            if match is None:
                raise self.error()
            self.tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            start = match.end()

    def error(self) -> TemplateError:
        return TemplateError(f"The language expression '{self.text}' is not valid: its syntax is wrong.")

    def expression(self) -> Node:
        kind, text = self._take()
        if kind == "text":
            return Literal(text[1:-1].replace("''", "'"))
        if kind == "number" and len(text.lstrip("-")) <= _DIGITS:
            return Literal(int(text))
        if kind != "name":
            raise self.error()
        while self._next() == ".":  # a user's function: namespace.name
            self._take()
            text += f".{self._name()}"
        node: Node = Call(text.lower(), self._arguments())
        while self._next() in {".", "["}:
            if self._take()[1] == ".":
                node = Member(node, Literal(self._name()))
            else:
                node = Member(node, self.expression())
                self._expect("]")
        return node

    def _arguments(self) -> tuple[Node, ...]:
        self._expect("(")
        arguments: list[Node] = []
        while self._next() != ")":
            if arguments:
                self._expect(",")
            arguments.append(self.expression())
        self._expect(")")
        return tuple(arguments)

    def _next(self) -> str:
        return self.tokens[self.position][1] if self.position < len(self.tokens) else ""

    def _take(self) -> tuple[str, str]:
        if self.position == len(self.tokens):
            raise self.error()
        self.position += 1
        return self.tokens[self.position - 1]

    def _name(self) -> str:
        kind, text = self._take()
        if kind != "name":
            raise self.error()
        return text

    def _expect(self, mark: str) -> None:
        if self._take()[1] != mark:
            raise self.error()
