"""Harm that a compromised agent does to its supervisor by the way in which it ends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.hanging_fs import HangingFs
from tests.system.hostile import Variant
from tests.system.hostile_scene import Scene, healthy
from tests.system.room import wait_until
from tests.system.test_rogue_agents import QUEUE, rogue_route

HEALTH = 'health = { deadline = "1s" }'


def test_supervisor_survives_refused_agent_that_exits_78(tmp_path: Path, unshare_container: Factory) -> None:
    """It is refused for where it says its ends are; by then it has exited with the code that says the same."""
    evil, peer = unshare_container(), unshare_container()
    (peer.rootfs / "srv/h").mkdir()
    routes = rogue_route("refuses", evil.spec, peer.spec) + healthy(peer.spec)
    with Variant(tmp_path, routes, "rogue") as daemon:
        daemon.wait_for("RUNNING", "h:one", "h:two")
        daemon.wait_for("FATAL", "refuses:rogue")
        daemon.call("start", names=["refuses"])
        played = Scene(daemon, evil.rootfs / "srv", peer.rootfs / "srv")
        played.healthy_passes()
        played.undisturbed("h:one", "h:two")


@pytest.mark.parametrize("order", ["start", "restart", "stop"])
def test_refused_agent_that_cannot_die_is_waited_for(tmp_path: Path, runc_container: Factory, order: str) -> None:
    """Somebody starts, restarts or stops it meanwhile, and then the kernel lets it end."""
    evil, peer = runc_container(), runc_container()
    (peer.rootfs / "srv/h").mkdir()
    (evil.rootfs / "srv/fuse").mkdir()
    routes = rogue_route("lingers", evil.spec, peer.spec) + healthy(peer.spec)
    with HangingFs(evil.pid, "/srv/fuse", "mute") as fuse, Variant(tmp_path, routes, "rogue") as daemon:
        try:
            daemon.wait_for("RUNNING", "h:one", "h:two")
            daemon.wait_for("FATAL", "lingers:rogue")
            pid = daemon.agents()["lingers:rogue"]["pid"]
            daemon.call(order, names=["lingers:rogue"])
            for _ in range(20):
                Scene(daemon, evil.rootfs / "srv", peer.rootfs / "srv").healthy_passes()
            if order == "stop":
                assert daemon.agents()["lingers:rogue"]["state"] == "STOPPING"
        finally:
            fuse.answer_all()
        wait_until(lambda: daemon.agents()["lingers:rogue"]["pid"] != pid, "it is gone")
        Scene(daemon, evil.rootfs / "srv", peer.rootfs / "srv").undisturbed("h:one", "h:two")


def test_agent_without_its_first_thread_is_seen(tmp_path: Path, unshare_container: Factory) -> None:
    """The kernel shows no memory and no descriptors of a process whose first thread has ended."""
    evil, peer = unshare_container(), unshare_container()
    (peer.rootfs / "srv/h").mkdir()
    routes = rogue_route("hollow", evil.spec, peer.spec, QUEUE) + healthy(peer.spec)
    routes = routes.replace("[route.hollow.agent", '[route.hollow]\ndelivery = "at-least-once"\n[route.hollow.agent', 1)
    with Variant(tmp_path, routes, "rogue", HEALTH) as daemon:
        daemon.wait_for("RUNNING", "h:one", "h:two")
        wait_until(lambda: re.search(r"hollow:rogue .*(too large|first thread)", daemon.said()), "it is seen")
