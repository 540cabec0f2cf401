"""A container that plants code for its agent at the host's paths: none of it runs, whatever goes wrong in the agent.

The same baits and the same checks with the defences off: there they are taken, so these tests can fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.system.conftest import Factory
from tests.system.hostile import Baits, Opened, foreign_code
from tests.system.hostile_daemon import PROVOCATIONS
from tests.system.hostile_scene import Scene, scene_of
from tests.system.room import wait_until

RUN_WITHOUT_DEFENCES = ("import", "codec", "strptime", "dlopen", "exec")
OPENED_WITHOUT_DEFENCES = (*RUN_WITHOUT_DEFENCES, "getaddrinfo", "pwd", "zone", "traceback", "warning")
# With these the C library, or Python itself, opens a file; what it finds there cannot run without Landlock either.
NEEDS_LANDLOCK = {"dlopen", "thread-exit", "getaddrinfo", "pwd", "zone", "traceback", "warning", "unraisable"}


@contextmanager
def baited(tmp_path: Path, make: Factory, variants: str) -> Iterator[tuple[Scene, Baits, Opened]]:
    """Plant everything before the daemon starts, and watch it from its start on."""
    evil, peer = make(), make()
    baits = Baits(evil.rootfs)
    baits.plant_everything(tmp_path)
    with baits.watched() as opened, scene_of(tmp_path, evil, peer, variants=variants) as made:
        yield made, baits, opened


def lure(scene: Scene, what: str) -> None:
    """Have the agent do it."""
    (scene.evil / "s/out/.provoke").touch()
    (scene.evil / "s/out/.provoke").rename(scene.evil / f"s/out/provoke-{what}")


def provoke(scene: Scene, what: str) -> None:
    """Return once the agent has done it, or has died of it."""
    before = scene.agent("s:evil")["pid"]
    lure(scene, what)

    def done() -> bool:
        return f"provoked {what}:" in scene.daemon.said() or scene.agent("s:evil")["pid"] not in (before, None)

    wait_until(done, f"{what} happens; log:\n{scene.daemon.said()}", 20)


def test_no_bait_is_taken_whatever_happens_in_an_agent(tmp_path: Path, runc_container: Factory) -> None:
    """Bugs that would import, look up, load, execute, or show a traceback; and a crash in each kind of thread."""
    with baited(tmp_path, runc_container, "provoked") as (scene, baits, opened):
        has_landlock = scene.agent("s:evil")["confinement"]["landlock"]
        for what in sorted(PROVOCATIONS if has_landlock else PROVOCATIONS.keys() - NEEDS_LANDLOCK):
            provoke(scene, what)
            scene.everything_passes()
            assert (what, baits.ran(), opened.baits(), foreign_code(scene.daemon)) == (what, [], [], set())
        scene.undisturbed("s:peer", "h:one", "h:two")
        said = scene.daemon.said()
        for refused in ("import of 'wave' in an agent", "unknown encoding: idna", "import of '_strptime' in an agent"):
            assert refused in said
        assert "internal error: ZeroDivisionError: division by zero at " in said
        assert "internal error: RuntimeError: can't start new thread at " in said, "no agent for files has one"


def test_without_defences_the_same_checks_see_each_bait_taken(tmp_path: Path, runc_container: Factory) -> None:
    """Each is run, or opened, which is as bad: a FIFO blocks a process that opens it."""
    with baited(tmp_path, runc_container, "provoked,unfrozen") as (scene, baits, opened):
        for what in OPENED_WITHOUT_DEFENCES:
            agent = scene.agent("s:evil")["pid"]
            lure(scene, what)
            wait_until(opened.baits, f"{what} opens a bait", 20)
            if what in RUN_WITHOUT_DEFENCES:
                wait_until(baits.ran, f"{what} runs a bait", 20)
            if what == "dlopen":
                assert foreign_code(scene.daemon)
            scene.begin_anew("s:evil", agent)
            baits.canary.unlink(missing_ok=True)
            opened.baits()
