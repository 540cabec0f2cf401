"""A container whose name is given to another one while it is served: `docker rename web old; docker run --name web`.

The kind: what a name leads to changes while its old meaning lives. A container that is removed and made again ends,
which its pidfd shows (test_arrivals.py); a pid that is reused is FATAL, and an id never changes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.often_asking import OftenAsking
from tests.system.room import wait_until
from tests.system.test_relay import route
from tests.system.traffic import put_into_spool, visible

SOON = 45.0  # seconds, on a busy machine


@pytest.mark.timeout(180)
def test_a_renamed_container_s_old_name_leads_to_its_new_owner(
    tmp_path: Path, docker_container: Factory, unshare_container: Factory
) -> None:
    """Messages that were taken before are handed over after; the one that was left behind is not touched any more."""
    web, legacy = docker_container(), unshare_container()
    name = web.name
    with OftenAsking(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        assert daemon.agents()["r:files"]["serves"] == f"docker:{name}"
        first = daemon.agents()["r:files"]["container_pid"]
        web.engine.command("rename", name, f"{name}-old")

        wait_until(lambda: daemon.agents()["r:files"]["serves"] == f"docker:{name}-old", "status names it", SOON)
        agent = daemon.agents()["r:files"]
        assert agent["container"] == f"docker:{name}"
        assert f"serves docker:{name}-old, which was docker:{name}" in agent["detail"]
        assert (agent["state"], agent["container_pid"], agent["restarts"]) == ("RUNNING", first, 0)

        other = docker_container(start=False)
        other.name = name
        other.start()
        wait_until(lambda: daemon.agents()["r:files"]["container_pid"] == other.pid, "it is followed", SOON)
        daemon.wait_for("RUNNING")
        agent = daemon.agents()["r:files"]
        assert (agent["serves"], agent["detail"]) == (f"docker:{name}", "")
        assert f"docker:{name} names another container now (pid {other.pid})" in daemon.said()
        put_into_spool(other.rootfs / "srv/out", [b"new"])
        put_into_spool(web.rootfs / "srv/out", [b"old"])
        wait_until(lambda: daemon.flow("r:files")["delivered"] == 1, "the new one's message")
        wait_until(lambda: visible(other.rootfs / "srv/out") == [], "it is removed, which its count does not wait for")
        assert visible(web.rootfs / "srv/out") != []


def test_renamed_back_is_as_before(tmp_path: Path, docker_container: Factory, unshare_container: Factory) -> None:
    web, legacy = docker_container(), unshare_container()
    with OftenAsking(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        pid = daemon.agents()["r:files"]["pid"]
        web.engine.command("rename", web.name, f"{web.name}-old")
        wait_until(lambda: daemon.agents()["r:files"]["detail"] != "", "status names it", SOON)
        web.engine.command("rename", f"{web.name}-old", web.name)
        wait_until(lambda: daemon.agents()["r:files"]["detail"] == "", "it has its name again", SOON)
        assert daemon.agents()["r:files"]["pid"] == pid
