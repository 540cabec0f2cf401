"""The import tables of docs/architecture.md: no folder imports upwards, and none in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEW = 5  # modules directly in supervisor/, with __init__.py


def _table(top: str) -> dict[str, set[str]]:
    """Return what each part of a top folder may import."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = text.split(f"| in {top}/ | may import |\n|---|---|\n")[1].split("\n\n")[0]
    return {
        part: set(re.findall(r"`(\w+)`", others))
        for part, others in re.findall(r"^\| `(\w+)` \|(.*)\|$", rows, re.MULTILINE)
    }


def _parts(top: str) -> Iterator[tuple[str, Path]]:
    """Yield each source file of a top folder with its part: the folder below the top, or the module itself."""
    for path in sorted((ROOT / top).rglob("*.py")):
        yield path.relative_to(ROOT / top).parts[0].removesuffix(".py"), path


def _imported(top: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield the parts of the same top folder that a file imports."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith(f"nsbridge.{top}."):
                yield node.lineno, name.split(".")[2]


@pytest.mark.parametrize("top", ["supervisor", "agents"])
def test_folders_import_only_what_the_table_allows(top: str) -> None:
    allowed = _table(top)
    below = {part for part, _ in _parts(top)} - allowed.keys()  # modules that all may import
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {part} must not import {other}"
        for part, path in _parts(top)
        for line, other in _imported(top, path)
        if other != part and other not in allowed.get(part, set()) | below
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("top", ["supervisor", "agents"])
def test_table_lists_only_arrows_that_exist(top: str) -> None:
    used: dict[str, set[str]] = {part: set() for part, _ in _parts(top)}
    for part, path in _parts(top):
        used[part] |= {other for _, other in _imported(top, path)}
    assert {part: others - used.get(part, set()) for part, others in _table(top).items() if others - used[part]} == {}


@pytest.mark.parametrize("top", ["supervisor", "agents"])
def test_no_folder_imports_in_a_circle(top: str) -> None:
    arrows: dict[str, set[str]] = {}
    for part, path in _parts(top):
        arrows.setdefault(part, set()).update(other for _, other in _imported(top, path) if other != part)
    TopologicalSorter(arrows).prepare()  # raises CycleError


def test_modules_are_not_imported_in_a_circle() -> None:
    files = {
        path: path.relative_to(ROOT).with_suffix("")
        for top in ("agents", "supervisor", "config")
        for path in (ROOT / top).rglob("*.py")
    }
    names = {"nsbridge." + ".".join(found.parts): path for path, found in files.items()}
    arrows: dict[str, set[str]] = {}
    for name, path in names.items():
        arrows[name] = set()
        for node in ast.parse(path.read_bytes()).body:  # a late import in a function is no circle
            if isinstance(node, ast.ImportFrom):
                arrows[name] |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    TopologicalSorter({name: others & names.keys() - {name} for name, others in arrows.items()}).prepare()


def test_root_of_supervisor_holds_few_modules() -> None:
    modules = [path.name for path in (ROOT / "supervisor").glob("*.py")]
    assert len(modules) <= FEW, modules
