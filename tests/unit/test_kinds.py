"""The registry of endpoint kinds, and what each kind has to itself."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.agents.confinement import callrules
from nsbridge.agents.confinement.callrules import KindCalls, Rule
from nsbridge.agents.endpoints import kinds
from nsbridge.agents.endpoints.kinds import KINDS, UnknownKindError
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.kind import ServedSpool
from nsbridge.agents.journal import counted, sinkjournal, sourcejournal
from nsbridge.config import kind as config
from tests.unit.test_entering import assignment

ROOT = Path(__file__).parents[2]
# In earlier versions a log's intent lay over these cells of a queue; a journal belongs to one kind at a time.
OVERLAID = {("sink", frozenset({"log", "queue"})): {19, 20, 21, 22}}


class Nothing(SpoolEndpoint):
    """A kind that nobody has registered."""

    name = "nothing"
    notes = 0


def test_unknown_kind_raises() -> None:
    given = assignment()
    agent = dataclasses.replace(given.agent, endpoint=Nothing(out="/x"))
    with pytest.raises(
        UnknownKindError, match="nothing is no kind of endpoint: spool, log, file, queue, mqueue, nats,"
    ):
        kinds.serve(dataclasses.replace(given, agent=agent))
    assert kinds.noted(77) is None
    assert kinds.noted(0) is None


def test_name_and_notes_are_registered_once() -> None:
    with pytest.raises(ValueError, match=r"spool \(1\) is registered"):
        kinds.register(ServedSpool)
    names = ["spool", "log", "file", "queue", "mqueue", "nats", "socket"]
    assert list(config.KINDS) == list(KINDS) == list(callrules.KINDS) == names


def test_kind_brings_no_rule_that_exists() -> None:
    with pytest.raises(ValueError, match="read: such a rule exists"):
        callrules.register("nothing", KindCalls(rules={"read": Rule("read", "again")}))


def test_numbers_in_journals_never_change() -> None:
    assert {name: kind.table.notes for name, kind in KINDS.items() if kind.table.notes} == {"spool": 1, "log": 2}


@pytest.mark.parametrize(
    ("side", "module", "cells"),
    [
        (
            "source",
            sourcejournal,
            {"CONFIRMED": 0, "TAKEN": 1, "RELEASED": 2, "MISSED": 18, "WHERE": 30, "RECORDS": 31},
        ),
        (
            "sink",
            sinkjournal,
            {"WHICH": 0, "INTENT": 9, "BYTES": 10, "REPEATS": 11, "IN_DOUBT": 12, "DEAD": 13, "NOT_DELIVERED": 14}
            | {"PLACE": 15, "KIND": 32, "DEAD_DROPPED": 33},
        ),
    ],
)
def test_shared_cells_are_fixed_and_no_kind_has_them(side: str, module: object, cells: dict[str, int]) -> None:
    assert {name: getattr(module, name) for name in cells} == cells
    counts = {counted.COUNT_AT, counted.COUNT_LIFE, counted.COUNT_SKIPS, counted.LANDING}
    assert counts == {40, 41, 42, 43}
    shared = counts | set(cells.values())
    of_kinds = {cell for kind in KINDS.values() for cell in getattr(kind, f"{side}_cells")}
    assert not of_kinds & shared
    kept = sinkjournal.KIND_CELLS_KEPT if side == "sink" else ()
    assert of_kinds <= {*getattr(module, "KIND_CELLS"), *kept}  # noqa: B009


@pytest.mark.parametrize("side", ["source", "sink"])
def test_no_kind_uses_cells_of_another(side: str) -> None:
    for (name, kind), (other, its) in itertools.combinations(KINDS.items(), 2):
        both = set(getattr(kind, f"{side}_cells")) & set(getattr(its, f"{side}_cells"))
        assert both == OVERLAID.get((side, frozenset({name, other})), set()), (name, other)


def test_no_module_asks_for_another_kind_s_class() -> None:
    """Each kind itself provides all that depends on it (docs/architecture.md)."""
    names = {cls: home for kind in KINDS.values() for cls, home in _classes(kind.table)}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for top in ("config", "agents", "supervisor")
        for path in sorted((ROOT / top).rglob("*.py"))
        for line, name in _asked(path)
        if name in names and path not in (names[name], *_folder(names[name]))
    ]
    assert not wrong, "\n".join(wrong)


def _classes(table: type) -> Iterator[tuple[str, Path]]:
    """Yield each class of the module that a kind's table is in, with that module's file."""
    home = Path(str(inspect.getsourcefile(table))).resolve()
    module = importlib.import_module(table.__module__)
    for name, cls in inspect.getmembers(module, inspect.isclass):
        if cls.__module__ == table.__module__:
            yield name, home


def _folder(home: Path) -> list[Path]:
    """Return the files of a kind that has a folder of its own."""
    return [] if home.parent == ROOT / "agents" / "endpoints" else sorted(home.parent.glob("*.py"))


def _asked(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the class names in each isinstance, issubclass, match and comparison with type(…)."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        asked: list[ast.expr] = []
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass")):
                asked = node.args[1:]
            case ast.MatchClass():
                asked = [node.cls]
            case ast.Compare():
                asked = node.comparators
        for name in (name for each in asked for name in ast.walk(each)):
            if isinstance(name, ast.Name):
                yield name.lineno, name.id
            elif isinstance(name, ast.Attribute):
                yield name.lineno, name.attr
