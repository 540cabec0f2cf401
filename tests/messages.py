"""Collects the messages of errors and of reasons to wait from the source, for docs/troubleshooting.md.

A message is what an exception of the tree is made with, what an endpoint gives as the reason for which it waits, and
what is logged as an error. It is a template: `…` stands for a value. A variable is followed to the texts that it is
given in the same module, a call to the texts that a function of that name returns, anywhere in the tree.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOPS = ("config", "agents", "supervisor")
VALUE = "…"
# A programmer's mistake, or what one part of the tree says to another, which words it anew.
NOT_SHOWN = {"UnexpectedEventError", "UnknownKindError", "Interrupted", "TooManyError", "_NotYet", "WireError"}
VALUES_CHECKED = "supervisor/cli/commands/values.py"  # its ValueErrors are shown as they are
REASONS = {
    "blocked": 1,
    "error": 1,
    "notice": 1,
}  # methods: of an endpoint's host, and of the log; the message is the second argument
ONLY = {"InvalidValue": 0, "Problem": 1, "Undeliverable": 1}  # which argument is the message, where others are not
LETTERS = 4  # at least, of a message beside its values
DEPTH = 4  # of variables and calls that are followed


class Module:
    """The functions and assignments of a module, by name."""

    def __init__(self, path: Path) -> None:
        self.name = path.relative_to(ROOT).as_posix()
        self.tree = ast.parse(path.read_bytes())
        self.assigned: dict[str, list[ast.expr]] = {}
        self.returned: dict[str, list[ast.expr]] = {}
        self.errors: dict[str, list[str]] = {}
        self.raised: set[ast.expr] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name | ast.Attribute):
                        self.assigned.setdefault(named(target), []).append(node.value)
            elif isinstance(node, ast.FunctionDef):
                values = [each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value]
                self.returned.setdefault(node.name, []).extend(values)
            elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                self.raised.add(node.exc)
            elif isinstance(node, ast.ClassDef):
                self.errors[node.name] = [named(base) for base in node.bases]

    def raises_variable(self, call: ast.Call) -> bool:
        """True if it makes the error of a variable, as in `raise kind(…)`."""
        return call in self.raised and isinstance(call.func, ast.Name) and call.func.id in self.assigned


def named(node: ast.expr) -> str:
    """Return the last part of a dotted name, or nothing."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class Messages:
    """All messages of the tree, each with the modules that have it."""

    def __init__(self) -> None:
        self._modules = [Module(path) for top in TOPS for path in sorted((ROOT / top).rglob("*.py"))]
        self._returned: dict[str, list[tuple[Module, ast.expr]]] = {}
        bases: dict[str, list[str]] = {}
        for module in self._modules:
            bases |= module.errors
            for name, values in module.returned.items():
                self._returned.setdefault(name, []).extend((module, value) for value in values)
        self._errors = {name for name in bases if _is_error(name, bases)} - NOT_SHOWN
        self.found: dict[str, set[str]] = {}
        for module in self._modules:
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Call):
                    for message in self._of_call(module, node):
                        self.found.setdefault(message, set()).add(module.name)

    def _of_call(self, module: Module, call: ast.Call) -> Iterator[str]:
        name = named(call.func)
        is_error = (
            name in self._errors
            or (name == "ValueError" and module.name == VALUES_CHECKED)
            or module.raises_variable(call)
        )
        if name in ONLY:
            yield from self._texts(module, call.args[ONLY[name]], DEPTH)
        elif is_error:
            for argument in call.args:
                yield from self._texts(module, argument, DEPTH)
        elif name in REASONS and isinstance(call.func, ast.Attribute) and len(call.args) > REASONS[name]:
            yield from self._texts(module, call.args[REASONS[name]], DEPTH)

    def _texts(self, module: Module, node: ast.expr, depth: int) -> Iterator[str]:
        """Yield each text that an expression may be and that has words of its own."""
        if isinstance(node, ast.Constant | ast.JoinedStr):
            yield from (text for text in templates(node) if len(re.sub(r"[\W\d_]", "", text)) >= LETTERS)
        elif isinstance(node, ast.IfExp):
            yield from self._texts(module, node.body, depth)
            yield from self._texts(module, node.orelse, depth)
        elif isinstance(node, ast.Name | ast.Attribute) and depth:
            for value in module.assigned.get(named(node), []):
                yield from self._texts(module, value, depth - 1)
        elif isinstance(node, ast.Call) and depth:
            for where, value in self._returned.get(named(node.func), []):
                yield from self._texts(where, value, depth - 1)


def _is_error(name: str, bases: dict[str, list[str]]) -> bool:
    return any(
        base in {"Exception", "OSError", "ValueError", "Error"} or _is_error(base, bases)
        for base in bases.get(name, [])
    )


def templates(node: ast.expr) -> list[str]:
    """Return what a text may be, with `…` for each value in it; a choice between two texts makes two."""
    if isinstance(node, ast.Constant):
        return [node.value if isinstance(node.value, str) else VALUE]
    if isinstance(node, ast.JoinedStr):
        return ["".join(parts) for parts in itertools.product(*map(templates, node.values))]
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.IfExp):
        return [*templates(node.value.body), *templates(node.value.orelse)]
    return [VALUE]
