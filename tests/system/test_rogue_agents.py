"""Agents that somebody has taken over: each harms its own route and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from tests.system import rogue
from tests.system.conftest import Factory
from tests.system.hostile import Variant, is_clean
from tests.system.hostile_scene import Scene, healthy
from tests.system.nsbridged import kill_and_wait
from tests.system.room import wait_until
from tests.system.traffic import put_into_spool

FOR = 4.0  # seconds
GROWTH = 8 << 20  # bytes that the supervisor may grow in that time, of what is its own: its last 1,000 lines of log
LOG = 400_000  # bytes that all of them may log in that time
WITHIN = 1.0  # seconds for a message on the healthy route
SILENT = ("floods", "forges", "stops", "dies")  # towards the peer, which need not end because of what it is sent
ALL = ("frames", "passes", *SILENT)


def rogue_route(name: str, evil: str, peer: str, endpoint: str = "") -> str:
    """Return a route with a rogue in one container, and an honest agent in the other."""
    endpoint = endpoint or f'spool = {{ out = "/srv/{name}-out", in = "/srv/{name}-in" }}'
    return (
        f'[route.{name}.agent.rogue]\ncontainer = "{evil}"\n{endpoint}\n[route.{name}.agent.peer]\n'
        f'container = "{peer}"\nspool = {{ out = "/srv/{name}-out", in = "/srv/{name}-in" }}\n'
    )


def measured(daemon: Variant) -> tuple[int, int]:
    """Return the supervisor's descriptors, and the bytes of memory that are its own."""
    process = psutil.Process(daemon.pid)
    return process.num_fds(), process.memory_full_info().uss


def test_rogue_agents_harm_nothing_but_their_own_routes(tmp_path: Path, unshare_container: Factory) -> None:
    """Six of them at once, without seccomp and Landlock, for some seconds under messages on a healthy route."""
    evil, peer = unshare_container(), unshare_container()
    routes = "".join(rogue_route(name, evil.spec, peer.spec) for name in ALL) + healthy(peer.spec)
    (peer.rootfs / "srv/h").mkdir()
    with Variant(tmp_path, routes, "rogue,unfrozen") as daemon:
        daemon.wait_for("RUNNING", "h:one", "h:two", *(f"{name}:peer" for name in SILENT))
        played = Scene(daemon, evil.rootfs / "srv", peer.rootfs / "srv")
        end = time.monotonic() + 1
        while time.monotonic() < end:  # until its ring of log lines is full, and its caches are
            played.healthy_passes(WITHIN)
        (descriptors, memory), logged = measured(daemon), daemon.log.stat().st_size
        end, passed = time.monotonic() + FOR, 0
        while time.monotonic() < end:
            played.healthy_passes(WITHIN)
            passed += 1
            daemon.call("status")
        after = measured(daemon)
        print(f"descriptors {descriptors} → {after[0]}, memory {memory} → {after[1]}, {passed} rounds of messages")
        assert abs(after[0] - descriptors) <= 4 * len(ALL), "each may just be dead or being started"
        assert after[1] - memory < GROWTH
        assert daemon.log.stat().st_size - logged < LOG
        assert is_clean(daemon.log.read_bytes())
        for line in ("lines before this were not logged", "killed by signal 40"):
            wait_until(lambda: line in daemon.said(), line)  # noqa: B023
        played.undisturbed("h:one", "h:two")
        assert daemon.stop() == 0, "and it ends in order, even if one of them does not"


def test_names_that_no_file_may_have_are_refused(tmp_path: Path, unshare_container: Factory) -> None:
    """Each ends the agent that gets it, and makes no file; the message then comes under its own name."""
    evil, peer = unshare_container(), unshare_container()
    route = rogue_route("misnames", evil.spec, peer.spec, 'spool = { out = "/srv/misnames-out" }')
    route = route.replace('out = "/srv/misnames-out", in', 'name = "original", in')
    (evil.rootfs / "srv/misnames-out").mkdir()
    with Variant(tmp_path, route, "rogue") as daemon:
        daemon.wait_for("RUNNING")
        box = peer.rootfs / "srv/misnames-in"
        before = {path for directory in (peer.rootfs, box.parent, box) for path in directory.iterdir()}
        put_into_spool(evil.rootfs / "srv/misnames-out", [b"body"])
        wait_until(lambda: daemon.flow("misnames:rogue")["delivered"] == 1, daemon.said())
        after = {path for directory in (peer.rootfs, box.parent, box) for path in directory.iterdir()}
        assert [path.parent for path in after - before] == [box]
        assert daemon.said().count("1 names from message 1, cut short or of no file") >= len(rogue.HOSTILE_NAMES)


def outcomes(daemon: Variant, name: str) -> dict[str, str]:
    lines = (line.partition(f" {name} attack ")[2] for line in daemon.said().splitlines())
    return dict(line.split(": ", 1) for line in lines if line)


QUEUE = "queue = { in = { key = 0x51 }, out = { key = 0x52 }, create = true }"
ROGUES = {
    "spool": "",
    "log": 'log = { out = "/srv/out.log", in = "/srv/in.log" }',
    "file": 'file = { out = "/srv/out.file", in = "/srv/in.file" }',
    "queue": QUEUE,
    "queue, at-least-once": QUEUE,
}


# The rogue has no link to its peer, which senders need at their start.
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.counter] if kind == "queue" else []) for kind in ROGUES]
)
def test_a_rogue_agent_can_do_nothing_beyond_its_endpoint(tmp_path: Path, runc_container: Factory, kind: str) -> None:
    """Also if it is uid 0, as the agent for what root owns is; also an agent that has just forked its senders."""
    evil, peer = runc_container(), runc_container()
    (peer.rootfs / "srv/h").mkdir()
    rogues = rogue_route("tries", evil.spec, peer.spec, ROGUES[kind])
    if "at-least-once" in kind:
        rogues = rogues.replace(
            "[route.tries.agent", '[route.tries]\ndelivery = "at-least-once"\n[route.tries.agent', 1
        )
    routes = rogues + healthy(peer.spec)
    with Variant(tmp_path, routes, "rogue") as daemon:
        daemon.wait_for("RUNNING", with_senders=False)  # the rogue has none
        if not daemon.agents()["h:one"]["confinement"]["landlock"]:
            pytest.skip("this kernel has no Landlock")
        done = outcomes(daemon, "tries:rogue")
        tried = rogue.ATTACKS | ({} if "queue" in kind else rogue.FILES_ONLY)
        if daemon.agents()["tries:rogue"]["evidence"] == "counter":
            tried |= rogue.COUNTED_ONLY
        assert done.keys() == tried.keys()
        assert {name: outcome for name, outcome in done.items() if not outcome.startswith("refused: ")} == {}
        Scene(daemon, evil.rootfs / "srv", peer.rootfs / "srv").healthy_passes()


def test_what_a_rogue_agent_left_dies_with_it(tmp_path: Path, unshare_container: Factory) -> None:
    """Without a filter it can fork: its child holds the journal's lock, for which its successor would wait 30 seconds.

    Killed, stopped by an order, and when the daemon ends.
    """
    evil, peer = unshare_container(), unshare_container()
    routes = rogue_route("leaves", evil.spec, peer.spec)
    with Variant(tmp_path, routes, "rogue,unfrozen") as daemon:
        daemon.wait_for("RUNNING")
        agent = daemon.agents()["leaves:rogue"]["pid"]
        (left,) = psutil.Process(agent).children()
        kill_and_wait(agent)
        wait_until(
            lambda: daemon.agents()["leaves:rogue"]["pid"] not in (agent, None), "it has a successor", WITHIN * 5
        )
        daemon.wait_for("RUNNING")
        assert not left.is_running()
        assert f"killed pid {left.pid}: an agent that has died had forked it" in daemon.said()
        (left,) = psutil.Process(daemon.agents()["leaves:rogue"]["pid"]).children()
        daemon.call("restart", names=["leaves:rogue"], wait=True)
        wait_until(lambda: not left.is_running(), "it is killed when its agent is stopped")
        (left,) = psutil.Process(daemon.agents()["leaves:rogue"]["pid"]).children()
        assert daemon.stop() == 0
        wait_until(lambda: not left.is_running(), "it is killed when the daemon ends")
