"""Container engines are a registry: what it holds, and that only an engine's own file depends on its kind."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.config import containerkind
from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import Found
from nsbridge.supervisor.containers.locate import locate

ROOT = Path(__file__).parents[2]
OWN_FILES = ROOT / "supervisor/containers/engines"
PRODUCT = sorted(path for top in ("config", "agents", "supervisor") for path in (ROOT / top).rglob("*.py"))
OUTSIDE = [path for path in PRODUCT if OWN_FILES not in path.parents]
# Modules that make a container of one kind by themselves, without a configuration.
MAKERS = {"supervisor/cli/oneshot.py"}
UNKNOWN = ContainerKind("vm", re.compile("[a-z]+"), "a vm name has small letters")


class Vm(Engine):
    """An engine that is never registered."""

    kind = UNKNOWN

    def locate(self, name: str) -> Found:
        raise AssertionError(name)


# -- what is registered


def test_config_knows_exactly_the_registered_kinds() -> None:
    assert list(containerkind.known().values()) == [engine.kind for engine in engines.all_engines()]


def test_kind_without_an_engine_is_an_error() -> None:
    with pytest.raises(LookupError, match="no engine is registered for containers of the kind vm"):
        locate(Container(UNKNOWN, "web"))


def test_prefix_is_registered_once() -> None:
    twice = type("Twice", (Vm,), {"kind": ContainerKind("docker", None, "")})()
    with pytest.raises(ValueError, match="docker is registered twice"):
        engines.register(twice)
    assert engines.engine_of(engines.docker.KIND) is not twice


def test_config_without_engines_is_a_mistake() -> None:
    """A program that reads a configuration must have registered them; else every container would be unknown."""
    program = "from nsbridge.config import values; values.container('docker:web')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "LookupError: no container kind is registered" in done.stderr


def test_follow_of_an_engine_without_events_is_an_error() -> None:
    with pytest.raises(NotImplementedError, match="vm has no events"):
        Vm().follow(1)


def test_defaults_are_those_of_an_engine_that_is_polled() -> None:
    vm = Vm()
    assert (vm.blocks, vm.has_events, vm.comes_back, vm.name_checked_every) == (False, False, True, 0)
    assert vm.is_installed()
    assert (tuple(vm.places("a")), tuple(vm.listed()), tuple(vm.leftovers(()))) == ((), (), ())


@pytest.mark.parametrize("engine", engines.all_engines(), ids=lambda engine: engine.kind.prefix)
def test_facts_of_an_engine_fit_together(engine: Engine) -> None:
    assert engine.blocks or not engine.name_checked_every, "a name is watched by asking, in a child"
    assert engine.kind.fix.isprintable()
    if engine.kind.is_host:
        assert engine.locate("") == Found(0, 0, "")


# -- what depends on a kind


def _module(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _names(node: ast.AST) -> set[str]:
    """Return every name and attribute in an expression or a pattern."""
    return {
        found.id if isinstance(found, ast.Name) else found.attr
        for found in ast.walk(node)
        if isinstance(found, ast.Name | ast.Attribute)
    }


def _kinds(node: ast.AST) -> set[str]:
    """Return every `docker.KIND` in an expression or a pattern."""
    files = {path.stem for path in OWN_FILES.glob("*.py")}
    found = [each for each in ast.walk(node) if isinstance(each, ast.Attribute) and each.attr == "KIND"]
    return {ast.unparse(each) for each in found if _names(each.value) & files}


def _dispatches(tree: ast.AST, classes: set[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, code) of each test for an engine's class or kind. Its `else` becomes wrong with a new engine."""
    prefixes = set(containerkind.known())
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, tested]):
                found = _names(tested) & classes
            case ast.MatchClass(cls=tested):
                found = _names(tested) & classes
            case ast.Compare():
                words = {str(each.value) for each in ast.walk(node) if isinstance(each, ast.Constant)} & prefixes
                about_kinds = _names(node) & {"kind", "prefix", "container", "engine"}
                found = _kinds(node) | (words if about_kinds else set())
            case ast.Dict() | ast.Set():
                keys = node.keys if isinstance(node, ast.Dict) else node.elts
                found = {kind for key in keys if key is not None for kind in _kinds(key)}
            case ast.MatchValue():
                found = _kinds(node)
            case _:
                continue
        if found:
            yield node.lineno, ast.unparse(node)


def _engine_classes() -> set[str]:
    files = [*OWN_FILES.glob("*.py"), ROOT / "supervisor/containers/dockerapi.py"]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_bytes()))]
    return {node.name for node in nodes if isinstance(node, ast.ClassDef)} | {"Engine", "StateFileRuntime"}


def test_no_code_outside_its_file_asks_for_an_engine() -> None:
    classes = _engine_classes()
    assert {"Docker", "PodmanCommand", "Pidfile", "ApiClient"} <= classes
    wrong = [
        f"{_module(path)}:{line}: {code}"
        for path in OUTSIDE
        for line, code in _dispatches(ast.parse(path.read_bytes()), classes)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(client, ApiClient)",
        "isinstance(engine, (Docker, Podman))",
        "container.kind is docker.KIND",
        "container.kind in (runc.KIND, crun.KIND)",
        "container.kind == 'docker'",
        "'pid' != engine.kind.prefix",
        "{docker.KIND: 10.0}[container.kind]",
        "{pid.KIND, ns.KIND}",
        "match kind:\n    case docker.KIND:\n        pass",
        "match client:\n    case PodmanCommand():\n        pass",
    ],
)
def test_dispatch_on_an_engine_is_noticed(code: str) -> None:
    assert list(_dispatches(ast.parse(code), _engine_classes()))


def test_only_the_registry_imports_an_engine() -> None:
    wrong = [
        f"{_module(path)}:{node.lineno}: {node.module}"
        for path in PRODUCT
        if _module(path) not in MAKERS and path != OWN_FILES / "__init__.py"
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.ImportFrom) and _imports_an_engine(node)
    ]
    assert not wrong, "\n".join(wrong)


def _imports_an_engine(node: ast.ImportFrom) -> bool:
    package = "nsbridge.supervisor.containers.engines"
    files = {path.stem for path in OWN_FILES.glob("*.py")}
    module = node.module or ""
    return module.startswith(f"{package}.") or (module == package and any(alias.name in files for alias in node.names))
