"""A compromised agent reaches neither other agents nor the supervisor nor the host by memory.

The kinds: what it inherits is only its own (pages, text of other routes, bodies); the supervisor never waits on
anything that an agent can hold (its mmap_lock); what it takes of the host is seen whatever kind of memory it is.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Factory
from tests.system.hanging_fs import HangingFs
from tests.system.hostile import Variant
from tests.system.hostile_scene import Scene, healthy
from tests.system.nsbridged import Followed, Nsbridged, kill_and_wait
from tests.system.room import crowd, wait_until
from tests.system.test_rogue_agents import rogue_route
from tests.system.traffic import put_into_spool

pytestmark = pytest.mark.alone  # it measures

HEALTH = 'health = { deadline = "1s" }'
WITHIN = 3.0  # seconds for an answer, and for a killed agent to be back, of a machine with nothing else to do


def test_agent_cannot_write_into_others_scoreboards(tmp_path: Path, unshare_container: Factory) -> None:
    """Others would be killed for a silence that was made up. With its defences on: memory needs no system call."""
    evil, peer = unshare_container(), unshare_container()
    (peer.rootfs / "srv/h").mkdir()
    routes = rogue_route("silences", evil.spec, peer.spec) + healthy(peer.spec)
    with Variant(tmp_path, routes, "memory", HEALTH) as daemon:
        daemon.wait_for("RUNNING", "h:one", "h:two")
        played = Scene(daemon, evil.rootfs / "srv", peer.rootfs / "srv")
        wait_until(lambda: _killed(daemon) or "has written over" in daemon.said(), "it has tried")
        played.healthy_passes()
        played.undisturbed("h:one", "h:two")
        assert [line for line in daemon.said().splitlines() if "wedged" in line and "h:" in line] == []


def _killed(daemon: Nsbridged) -> bool:
    """Return True once the kernel has stopped the rogue twice."""
    return daemon.said().count("killed by SIGSEGV") >= 2


@pytest.mark.parametrize("health", ["", HEALTH], ids=["asked", "measured"])
def test_supervisor_never_waits_for_an_agents_memory_lock(tmp_path: Path, runc_container: Factory, health: str) -> None:
    """An agent holds its own mmap_lock without end. Callers still get answers, and a killed agent restarts."""
    evil, peer = runc_container(), runc_container()
    for name in ("h", "fuse"):
        (peer.rootfs / "srv" / name).mkdir()
        (evil.rootfs / "srv" / name).mkdir()
    routes = rogue_route("maps", evil.spec, peer.spec) + healthy(peer.spec)
    with (
        HangingFs(evil.pid, "/srv/fuse", "dirty") as fuse,
        Variant(tmp_path, routes, "memory,unfrozen", health) as daemon,
    ):
        try:
            daemon.wait_for("RUNNING", "maps:rogue", "h:one", "h:two")
            wait_until(lambda: "takes its mmap_lock" in daemon.said(), "it holds it")
            if health:
                wait_until(lambda: "its own memory cannot be measured" in daemon.said(), "it is judged all the same")
            else:
                _answers(daemon)
            followed = Followed(daemon)
            for _ in range(3):
                before = time.monotonic()
                kill_and_wait(daemon.agents()["h:one"]["pid"])
                followed.until("h:one", "RUNNING")
                assert time.monotonic() - before < WITHIN * crowd()
        finally:
            fuse.answer_all()


def _answers(daemon: Nsbridged) -> None:
    for _ in range(2):  # the second time it is known to hang
        before = time.monotonic()
        (inspected,) = daemon.call("inspect", name="maps:rogue")
        assert inspected["memory"]["own"] is None
        assert inspected["memory"]["rss"] > 1 << 20
        assert time.monotonic() - before < 6 + WITHIN * crowd(), "five seconds, then another child looks"
    for method in ("status", "top", "status", "top"):
        before = time.monotonic()
        daemon.call(method)
        assert time.monotonic() - before < WITHIN * crowd()
    shown = daemon.call("top")["processes"]
    assert (shown["maps:rogue"]["own"], type(shown["h:one"]["own"])) == (None, int)


def test_shared_memory_counts_as_an_agents_own(tmp_path: Path, unshare_container: Factory) -> None:
    evil, peer = unshare_container(), unshare_container()
    routes = rogue_route("shares", evil.spec, peer.spec)
    with Variant(tmp_path, routes, "memory,unfrozen", HEALTH) as daemon:
        wait_until(lambda: re.search(r"too large: pid \d+ had 2[67]\d\.\d MB of memory", daemon.said()), "it is seen")


# -- what a new agent finds in its memory


def _readable(pid: int) -> bytes:
    """Return all that a process has in memory of its own."""
    found = []
    with (
        open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as maps,
        open(f"/proc/{pid}/mem", "rb") as memory,
    ):
        for line in maps:
            area, rights, *about = line.split(maxsplit=5)
            start, end = (int(number, 16) for number in area.split("-"))
            if rights.startswith("rw") and end - start < 64 << 20 and not about[-1].startswith("[v"):
                memory.seek(start)
                found.append(memory.read(end - start))
    return b"".join(found)


def _dead_end(web: Any, other: Any) -> str:
    """Return a route `r` whose messages with a newline are dead letters, and a route `h`."""
    return (
        f'[route.r.agent.a]\ncontainer = "{web.spec}"\nspool = {{ out = "/srv/out" }}\n'
        f'[route.r.agent.b]\ncontainer = "{other.spec}"\nlog = {{ in = "/srv/log" }}\n{healthy(other.spec)}'
    )


def test_no_body_of_a_message_is_ever_in_the_supervisor(tmp_path: Path, unshare_container: Factory) -> None:
    """An agent of another route that is forked after a dead letter was shown has none either."""
    web, other = unshare_container(), unshare_container()
    (other.rootfs / "srv/h").mkdir()
    with Nsbridged(tmp_path, _dead_end(web, other)) as daemon:
        daemon.wait_for("RUNNING")
        words = [secrets.token_hex(24).encode() for _ in range(20)]
        put_into_spool(web.rootfs / "srv/out", [word + b"\n" + bytes(600) for word in words])
        wait_until(lambda: daemon.flow("r:a")["dead"] == len(words), "all are put aside")
        letters = daemon.call("dead_list", names=[])["letters"]
        for letter in letters:
            shown = daemon.call("dead_show", id=letter["id"])
            assert base64.b64decode(shown["body"])[:48] in words
        kill_and_wait(daemon.agents()["h:one"]["pid"])
        daemon.wait_for("RUNNING", "h:one")
        for pid in (daemon.pid, daemon.agents()["h:one"]["pid"]):
            memory = _readable(pid)
            assert b"nsbridge" in memory
            assert [word for word in words if word in memory or base64.b64encode(word) in memory] == []
