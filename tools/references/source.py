"""What the code says, read from its syntax: calls with their texts, and the constants that stand for texts."""

import ast
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ROOT / "src" / "podidentity"
LAB = ROOT / "lab" / "src" / "podidentity_lab"
HOLE = "…"
"""What stands in a sentence for a value that is only known when the code runs."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function by a plain name or as an attribute; `module` is its file below the package."""

    module: str
    name: str
    node: ast.Call
    constants: dict[str, tuple[str, ...]]

    def texts(self, position: int) -> list[str]:
        """Return the texts that an argument may be: a literal, what a name is bound to, either branch of a choice."""
        if position >= len(self.node.args):
            return []
        argument = self.node.args[position]
        if isinstance(argument, ast.Name):
            return list(self.constants.get(argument.id, ()))
        return list(_literals(argument))


@functools.cache
def calls(package: Path) -> tuple[Call, ...]:
    """Return every call in a package's files, in their order."""
    return tuple(call for path in sorted(package.rglob("*.py")) for call in _calls(path, package))


def _calls(path: Path, package: Path) -> Iterator[Call]:
    tree = ast.parse(path.read_text())
    module = str(path.relative_to(package.parent))
    yield from _calls_below(tree, module, _constants(tree.body))


def _calls_below(node: ast.AST, module: str, constants: dict[str, tuple[str, ...]]) -> Iterator[Call]:
    """Yield the calls below a node; a function's own variables count inside it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _calls_below(child, module, constants | _constants(ast.walk(child)))
            continue
        if isinstance(child, ast.Call):
            match child.func:
                case ast.Name(name) | ast.Attribute(attr=name):
                    yield Call(module, name, child, constants)
        yield from _calls_below(child, module, constants)


def _constants(nodes: Iterable[ast.AST]) -> dict[str, tuple[str, ...]]:
    """Return the texts that names are bound to: several where a name is bound to one of several."""
    texts: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            texts[name] = texts.get(name, ()) + tuple(_literals(node.value))
    return {name: values for name, values in texts.items() if values}


def _literals(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Constant(str() as text):
            yield text
        case ast.JoinedStr(parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in parts)
        case ast.IfExp(body=first, orelse=second):
            yield from _literals(first)
            yield from _literals(second)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"
