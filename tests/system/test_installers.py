"""pipx and uv install the wheel as docs/installing.md describes it, and remove it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wheels import copy_repository, wheel

PROGRAMS = {"nsbridge", "nsbridgectl", "nsbridged"}
TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with nsbridge's wheel and those of all that it needs: the installers need no index then."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheels")
    copy_repository(tree)
    made = wheel(tree, out)
    run("python", "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", out, f"{made}[web]")
    return out


def run(program: str | Path, *arguments: str | Path, env: dict[str, str] | None = None) -> str:
    command = [TOOLS / program, *arguments]
    done = subprocess.run(command, env=os.environ | (env or {}), check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{program} {arguments}\n{done.stdout}{done.stderr}"
    return done.stdout


def installed(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()} if place.exists() else set()


def test_pipx_installs_commands_and_man_pages(wheels: Path, tmp_path: Path) -> None:
    env = {f"PIPX_{name}": str(tmp_path / name.lower()) for name in ("HOME", "BIN_DIR", "MAN_DIR")}
    env |= {"PIPX_DEFAULT_BACKEND": "pip"}
    (made,) = wheels.glob("nsbridge-*.whl")
    offline = f"--pip-args=--no-index --find-links={wheels}"
    run("pipx", "install", "--python", sys.executable, offline, f"nsbridge[web] @ file://{made}", env=env)
    assert installed(tmp_path / "bin_dir") == PROGRAMS
    assert {"nsbridgectl.1", "nsbridge.1"} <= installed(tmp_path / "man_dir/man1")
    assert run(tmp_path / "bin_dir/nsbridged", "--version") == "nsbridged 0.2.0\n"
    assert "usage: nsbridge web" in run(tmp_path / "bin_dir/nsbridge", "web", "--help")
    python = Path(run("pipx", "environment", "--value", "PIPX_LOCAL_VENVS", env=env).strip()) / "nsbridge/bin/python"
    run(python, "-m", "nsbridge.supervisor.cli.commands.share", tmp_path / "share")
    assert (tmp_path / "share/man/man8/nsbridged.8").exists()
    run("pipx", "uninstall", "nsbridge", env=env)
    assert installed(tmp_path / "bin_dir") == set()


def test_uv_installs_commands(wheels: Path, tmp_path: Path) -> None:
    env = {f"UV_{name}": str(tmp_path / name.lower()) for name in ("TOOL_DIR", "TOOL_BIN_DIR", "CACHE_DIR")}
    env |= {"UV_PYTHON_DOWNLOADS": "never"}
    (made,) = wheels.glob("nsbridge-*.whl")
    offline = ("--offline", "--no-index", "--find-links", wheels, "--no-config")
    run("uv", "tool", "install", "--python", sys.executable, *offline, made, env=env)
    assert installed(tmp_path / "tool_bin_dir") == PROGRAMS
    assert run(tmp_path / "tool_bin_dir/nsbridgectl", "--version") == "nsbridgectl 0.2.0\n"
    run("uv", "tool", "install", "--force", "--python", sys.executable, *offline, made, env=env)  # an upgrade
    run("uv", "tool", "uninstall", "nsbridge", env=env)
    assert installed(tmp_path / "tool_bin_dir") == set()
