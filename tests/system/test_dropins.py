"""Drop-ins of a running daemon: reload starts, stops and leaves alone; a broken one changes nothing."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.system.nsbridged import Nsbridged
from tests.system.room import run

FILES = 200


def route(base: Path, name: str, more: str = "") -> str:
    """Return a route between two directories of the host."""
    (base / name).mkdir(exist_ok=True)
    return (
        f"[route.{name}]\n{more}\n"
        f'[route.{name}.agent.one]\ncontainer = "host"\nspool = {{ out = "{base}/{name}/out" }}\n'
        f'[route.{name}.agent.two]\ncontainer = "host"\nspool = {{ in = "{base}/{name}/in" }}\n'
    )


class Scene:
    """A daemon whose routes are in drop-ins."""

    def __init__(self, directory: Path) -> None:
        self.base = directory / "srv"
        self.base.mkdir()
        self.drop_ins = directory / "nsbridge.d"
        self.drop_ins.mkdir()
        self.daemon = Nsbridged(directory, "")

    def add(self, name: str, text: str | None = None) -> None:
        (self.drop_ins / f"{name}.toml").write_text(route(self.base, name) if text is None else text)

    def ctl(self, *words: str) -> tuple[int, str, str]:
        """Run nsbridgectl; return its exit code and what it wrote."""
        command: list[str | Path] = [Path(sys.executable).with_name("nsbridgectl"), "-s", self.daemon.socket, *words]
        done = run(command, check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def pids(self) -> dict[str, int]:
        return {name: agent["pid"] for name, agent in self.daemon.agents().items()}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_reload_follows_the_drop_ins(scene: Scene) -> None:
    scene.add("a")
    with scene.daemon as daemon:
        daemon.wait_for("RUNNING")
        before = scene.pids()
        assert before.keys() == {"a:one", "a:two"}
        assert "1 route, 1 drop-in" in daemon.said()
        scene.add("b")
        assert scene.ctl("reload", "--dry-run")[1] == "would start        b\nwould leave alone  a\n"
        assert scene.pids() == before
        assert scene.ctl("reload", "--wait")[0] == 0
        daemon.wait_for("RUNNING")
        assert scene.pids().items() > before.items()
        (scene.drop_ins / "b.toml").unlink()
        assert scene.ctl("reload", "--wait")[0] == 0
        assert scene.pids() == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("not TOML", "{where}/c.toml: line 1, column 5"),
        ('[daemon]\nlog = { level = "debug" }\n', "{where}/c.toml: daemon: is not for a drop-in"),
        (None, "{where}/c.toml can be changed by users other than root (everybody may write it)"),
        ("again", "{where}/c.toml: route.a: is in {where}/a.toml too"),
    ],
    ids=["syntax", "daemon", "permissions", "again"],
)
def test_a_broken_drop_in_changes_nothing(scene: Scene, text: str | None, problem: str) -> None:
    """A good one beside it is not started either."""
    scene.add("a")
    with scene.daemon as daemon:
        daemon.wait_for("RUNNING")
        before = scene.pids()
        scene.add("b")
        scene.add("c", route(scene.base, "a") if text == "again" else text)
        if text is None:
            (scene.drop_ins / "c.toml").chmod(0o666)
        for words in (["reload", "--dry-run"], ["reload"]):
            code, _, errors = scene.ctl(*words)
            assert code == 2
            assert problem.format(where=scene.drop_ins) in errors
        assert scene.pids() == before
        assert "reload: nothing was changed" in daemon.said()


def test_200_drop_ins_cost_a_reload_little(scene: Scene) -> None:
    """Their routes are not started: only what the files themselves cost is measured, against a generous bound."""
    for number in range(FILES):
        scene.add(f"r{number:03}", route(scene.base, f"r{number:03}", "autostart = false"))
    with scene.daemon as daemon:
        assert len(daemon.agents()) == 2 * FILES
        begun = time.monotonic()
        assert scene.ctl("reload")[1].startswith("no route has changed\nleaves alone  r000, ")
        assert time.monotonic() - begun < 10
    checked = run([Path(sys.executable).with_name("nsbridged"), "-c", daemon.config, "--check"])
    assert checked.stdout.decode().startswith(f"{daemon.config}: right; {FILES} routes, {FILES} drop-ins\n")
