"""The rules of the tree (docs/architecture.md), held as tests: linters, layers, imports, sizes, what is shipped."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from nsbridge.supervisor.cli.commands import share
from tests.wheels import copy_repository, repository

ROOT = Path(__file__).parents[2]
LAYERS = ("config", "agents", "supervisor")  # each may import itself and those before it
BUILT_AT = "1764000000"  # a day of its own for manual pages, whenever the test runs
MAX_FILE_LINES = 380
MAX_FUNCTION_LINES = 40  # without the docstring
MAX_PARAMETERS = 6  # without self

# Each third-party package, and ctypes, has one home. The demo's container programs stand for somebody else's programs,
# which run where nsbridge's own modules are not meant to be.
HOMES = {
    "cattrs": "config/load.py",
    "ctypes": "agents/linux.py",
    "inotify_simple": "agents/endpoints/watch.py",
    "nats": "agents/endpoints/nats/",
    "sysv_ipc": "agents/endpoints/queue/queue.py",
    "daemon": "supervisor/host/detach.py",
    "lockfile": "supervisor/host/detach.py",
    "psutil": "supervisor/health/processes.py",
    "jinja2": "supervisor/cli/web/app.py",
    "prometheus_client": "supervisor/cli/web/metrics.py",
    "starlette": "supervisor/cli/web/",
    "uvicorn": "supervisor/cli/web/",
}
CONTAINER_PROGRAMS = "supervisor/cli/demo/echo_*.py"
DISTRIBUTIONS = {  # import name → what pip installs, for those that are declared
    "cattrs": "cattrs",
    "inotify_simple": "inotify_simple",
    "sysv_ipc": "sysv_ipc",
    "daemon": "python-daemon",
    "psutil": "psutil",
}
WEB = {"jinja2", "prometheus_client", "starlette", "uvicorn"}  # the extra: the daemon never loads them


def _sources(*tops: str) -> list[Path]:
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


PRODUCT = _sources(*LAYERS)
EVERYTHING = [*PRODUCT, *_sources("tests", "benchmarks", "examples"), ROOT / "setup.py"]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every absolute import; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _run(*command: str | Path, cwd: Path = ROOT) -> str:
    env = os.environ | {
        "PYRIGHT_PYTHON_GLOBAL_NODE": "0",  # the node that pip installed, whatever the machine has
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",  # of a newer release, which it would look for in the network
        "SOURCE_DATE_EPOCH": BUILT_AT,
    }
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def _python(*arguments: str | Path, cwd: Path = ROOT) -> str:
    return _run(sys.executable, *arguments, cwd=cwd)


# -- linters


def test_ruff_has_nothing_to_say() -> None:
    _python("-m", "ruff", "check", "--output-format", "concise", ".")


def test_the_code_is_formatted() -> None:
    _python("-m", "ruff", "format", "--check", ".")


@pytest.mark.timeout(300)
def test_mypy_strict_has_nothing_to_say() -> None:
    _python("-m", "mypy")


@pytest.mark.timeout(300)
def test_pyright_has_nothing_to_say() -> None:
    _python("-m", "pyright", "--pythonpath", sys.executable)


def test_shellcheck_has_nothing_to_say() -> None:
    services = [*(ROOT / "examples/service/runit").iterdir(), ROOT / "examples/service/nsbridged.openrc"]
    scripts = [ROOT / "run", ROOT / ".ci" / "run", *sorted((ROOT / "tests").rglob("*.sh")), *sorted(services)]
    scripts += [ROOT / "packaging" / name for name in ("build-deb", "check-deb", "check-image")]
    _run("shellcheck", *scripts)


# -- what may be imported where


@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_imports_upwards(layer: str) -> None:
    above = tuple(f"nsbridge.{name}" for name in LAYERS[LAYERS.index(layer) + 1 :])
    wrong = [
        f"{_name(path)}:{line}: {layer} must not import {name}"
        for path in _sources(layer)
        for line, name in _imports(path)
        if name.startswith(above)
    ]
    assert not wrong, "\n".join(wrong)


def test_a_third_party_package_has_one_home() -> None:
    wrong = [
        f"{_name(path)}:{line}: {name} belongs in {HOMES.get(name.split('.')[0], 'no module: docs/dependencies.md')}"
        for path in PRODUCT
        if not path.match(CONTAINER_PROGRAMS)
        for line, name in _imports(path)
        if not _is_allowed(name.split(".")[0], _name(path))
    ]
    assert not wrong, "\n".join(wrong)


def _is_allowed(package: str, module: str) -> bool:
    if package in HOMES:
        home = HOMES[package]
        return module.startswith(home) if home.endswith("/") else module == home
    return package == "nsbridge" or package in sys.stdlib_module_names


def test_a_container_program_imports_only_what_it_may_have() -> None:
    allowed = {"sysv_ipc", "inotify_simple"}
    wrong = [
        f"{_name(path)}:{line}: {name}"
        for path in PRODUCT
        if path.match(CONTAINER_PROGRAMS)
        for line, name in _imports(path)
        if (package := name.split(".")[0]) not in allowed and package not in sys.stdlib_module_names
    ]
    assert not wrong, "\n".join(wrong)


def test_declared_dependencies_are_the_used_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=!~ ;\[]", requirement)[0] for requirement in project["dependencies"]}
    imported = {name.split(".")[0] for path in PRODUCT for _line, name in _imports(path)}
    assert declared == {distribution for name, distribution in DISTRIBUTIONS.items() if name in imported}


def test_packages_of_the_web_extra_are_the_used_ones() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    imported = {name.split(".")[0] for path in PRODUCT for _line, name in _imports(path)}
    assert {re.split(r"[<>=!~ ;\[]", requirement)[0] for requirement in extras["web"]} == WEB
    assert imported >= WEB


def test_daemon_and_status_load_nothing_of_the_web_extra() -> None:
    """nsbridgectl finds them only for `metrics`, nsbridge only for `web`."""
    loaded = "import sys, importlib; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    for program in ("nsbridged", "nsbridgectl", "nsbridge"):
        modules = _python("-c", loaded, f"nsbridge.supervisor.cli.{program}").split()
        assert not WEB & set(modules), program
        assert not [name for name in modules if name.startswith("nsbridge.supervisor.cli.web")], program


def test_web_process_uses_the_control_socket_alone() -> None:
    """It has no rights of the daemon, and nothing of it: beside its own modules it loads the client and views."""
    parts = ["config", "supervisor.host.procfs", *(f"supervisor.cli.{name}" for name in ("web", "client", "inspect"))]
    allowed = tuple(f"nsbridge.{part}" for part in (*parts, "supervisor.cli.commands"))
    wrong = [
        f"{_name(path)}:{line}: {name}"
        for path in sorted((ROOT / "supervisor/cli/web").glob("*.py"))
        for line, name in _imports(path)
        if name.startswith("nsbridge.") and not name.startswith(allowed)
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_one_fork() -> None:
    forks = [
        f"{_name(path)}:{line}"
        for path in PRODUCT
        if not path.match("supervisor/cli/demo/*.py")
        for line, name in [*_imports(path), *_calls(path)]
        if name.split(".")[0] == "multiprocessing" or name in {"os.fork", "os.forkpty", "pty.fork"}
    ]
    assert [where.split(":")[0] for where in forks] == ["agents/fork.py"], forks


def _calls(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every call of a module's function."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.lineno, ast.unparse(node.func)


def test_no_import_is_relative() -> None:
    wrong = [
        f"{_name(path)}:{node.lineno}"
        for path in EVERYTHING
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not wrong, "\n".join(wrong)


# -- sizes


def test_no_file_has_grown_too_long() -> None:
    counted = {_name(path): len(path.read_bytes().splitlines()) for path in EVERYTHING}
    wrong = {name: count for name, count in counted.items() if count > MAX_FILE_LINES}
    assert not wrong, f"more than {MAX_FILE_LINES} lines: {wrong}"


def test_no_function_has_grown_too_long_or_takes_too_much() -> None:
    wrong = [problem for path in EVERYTHING for problem in _oversized(path)]
    assert not wrong, "\n".join(wrong)


def _oversized(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        where = f"{_name(path)}:{node.lineno}: {node.name}"
        docstring = node.body[0] if ast.get_docstring(node) is not None else None
        lines = _height(node) - (_height(docstring) if docstring else 0)
        if lines > MAX_FUNCTION_LINES:
            yield f"{where} has {lines} lines, {MAX_FUNCTION_LINES} at most"
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([name for name in arguments if name not in {"self", "cls"}])
        if count > MAX_PARAMETERS and path in PRODUCT:
            yield f"{where} takes {count} parameters, {MAX_PARAMETERS} at most"


def _height(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


# -- what is shipped


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist and the wheel from a copy, so that no old build gets in; return their directory."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("built")
    copy_repository(tree)
    _python("-m", "build", "--no-isolation", "--outdir", out, tree)
    return out


def _shipped() -> set[str]:
    web = {
        _name(path) for folder in ("static", "templates") for path in (ROOT / "supervisor/cli/web" / folder).iterdir()
    }
    return {_name(path) for path in PRODUCT} | {"config/example.toml"} | web


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - info - _data(names) == {f"nsbridge/{name}" for name in _shipped() | {"config/configuration.md"}}
    assert {name.split("/", 1)[1] for name in info} >= {"METADATA", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_the_wheel_holds_manual_pages_and_completions(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip puts what is below *.data/data into its prefix: /usr/local/share/man and so on."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", BUILT_AT)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        data = {name.split("/", 2)[2]: archive.read(name).decode() for name in _data(set(archive.namelist()))}
    assert data == {f"share/{name}": text for name, text in share.files("0.2.0").items()}
    assert {"share/man/man1/nsbridgectl.1", "share/man/man8/nsbridged.8", "share/zsh/site-functions/_nsbridge"} <= set(
        data
    )


def _data(names: set[str]) -> set[str]:
    return {name for name in names if ".data/data/" in name}


def test_the_sdist_holds_every_file(built: Path) -> None:
    """A distribution's packager builds, tests and documents from it. Links stay links."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {member.name.split("/", 1)[1]: member for member in archive.getmembers() if "/" in member.name}
    made = {name for name in members if name.startswith("nsbridge.egg-info")} | {"PKG-INFO", "setup.cfg"}
    files = {name for name, member in members.items() if not member.isdir()} - made
    assert files == repository()
    links = {name for name, member in members.items() if member.issym()}
    assert links == {f".typecheck/nsbridge/{layer}" for layer in LAYERS}


def test_two_builds_are_equal(built: Path, tmp_path: Path) -> None:
    """Built from the sdist: no file's time, order or owner comes from the machine."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    _python("-m", "build", "--no-isolation", "--outdir", tmp_path, tmp_path / sdist.name.removesuffix(".tar.gz"))
    first, second = ({path.name: path.read_bytes() for path in place.glob("nsbridge-*.*") if path.is_file()}
                     for place in (built, tmp_path))  # fmt: skip
    assert {name for name, content in first.items() if second[name] != content} == set()
    assert len(first) == 2


def test_every_command_that_is_declared_can_be_loaded() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    installed = {point.name: point for point in entry_points(group="console_scripts") if point.name in declared}
    assert set(installed) == set(declared)
    assert all(callable(point.load()) for point in installed.values())


def test_pypi_s_supervisor_can_be_installed_beside_nsbridge(tmp_path: Path) -> None:
    both = "import supervisor.supervisord, nsbridge.supervisor as ours; print(supervisor.__file__, ours.__file__)"
    theirs, ours = _python("-P", "-c", both, cwd=tmp_path).split()
    assert theirs != ours


def test_the_installed_packages_fit_together() -> None:
    _python("-m", "pip", "check")


def test_the_type_checkers_view_of_the_tree_is_the_tree() -> None:
    links = {path.name: path.resolve() for path in (ROOT / ".typecheck" / "nsbridge").iterdir()}
    assert links == {layer: ROOT / layer for layer in LAYERS}


def test_each_sleep_in_a_test_says_why() -> None:
    """A pace, the time of a strike, a fault itself, or a poll; not a guess at when something has happened."""
    sleeps = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (ROOT / "tests").rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\btime\.sleep\(", line) and "  # " not in line and path != Path(__file__)
    ]
    assert sleeps == []
