"""Containers of Incus and LXD (`incus:NAME`), with the real LXD 5.0 of Debian; Incus has the same API."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.identity import NoAnswer, NotRunning
from tests.system.comings import pair_of
from tests.system.conftest import Factory
from tests.system.engine_checks import check_life, check_removal, check_restarts, check_seen_to_come
from tests.system.lxd_daemon import Lxd, LxdContainer
from tests.system.nsbridged import Followed, Nsbridged
from tests.system.room import wait_until
from tests.system.test_arrivals import SOON, waiting
from tests.system.test_relay import route


def test_lxd_container_is_found_by_name(incus_container: Factory) -> None:
    web = incus_container(start=False)
    web.create()
    check_life(web)
    web.pause()
    assert containers.locate(web.container).pid == web.pid, "a frozen container lives"
    web.resume()
    with pytest.raises(NotRunning, match="is not known to incus"):
        containers.locate(Container(engines.incus.KIND, f"other-project/{web.name}"))
    assert containers.locate(Container(engines.incus.KIND, f"default/{web.name}")).pid == web.pid


def test_lxd_container_is_seen_to_come(tmp_path: Path, incus_container: Factory) -> None:
    web = incus_container(start=False)
    web.create()
    check_seen_to_come(tmp_path, web)


def test_removal_does_not_wait_for_an_agent(tmp_path: Path, incus_container: Factory) -> None:
    check_removal(tmp_path, incus_container(), incus_container())


def test_restarts_with_lxd_lose_and_repeat_nothing(tmp_path: Path, lxd: Lxd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LXD_DIR", str(lxd.base))
    with ExitStack() as cleanup:
        check_restarts("incus", tmp_path, pair_of(lambda program: LxdContainer(program, lxd), cleanup), 2, 2.0)


def test_stuck_lxd_delays_no_other_route(
    tmp_path: Path, lxd: Lxd, incus_container: Factory, unshare_container: Factory
) -> None:
    """A container that ends meanwhile is left at once; when it is back and LXD answers again, it is attached."""
    web, one, other = incus_container(), unshare_container(), unshare_container()
    with Nsbridged(tmp_path, waiting(web.spec, "incus:nowhere") + route(one.spec, other.spec)) as daemon:
        daemon.wait_for("RUNNING", "w:one", "r:files", "r:queue")
        followed = Followed(daemon)
        lxd.freeze()
        try:
            with pytest.raises(NoAnswer, match="does not answer"):
                containers.locate(web.container)
            web._signal(9)
            followed.until("w:one", "WAITING", SOON)
            wait_until(lambda: "does not answer" in daemon.agents()["w:one"]["detail"], "status has the reason")
            (one.rootfs / "srv/out/1").write_bytes(b"x")
            wait_until(lambda: daemon.flow("r:files")["delivered"] == 1, "the other route delivers")
        finally:
            lxd.thaw()
        web.stop()
        web.start()
        followed.until("w:one", "RUNNING", SOON)


def test_lxd_that_is_restarted_is_watched_again(tmp_path: Path, lxd: Lxd, incus_container: Factory) -> None:
    """Its containers outlive it, and so do their agents."""
    web, later = incus_container(), incus_container(start=False)
    later.create()
    with Nsbridged(tmp_path, waiting(web.spec, later.spec)) as daemon:
        followed = Followed(daemon)
        daemon.wait_for("RUNNING", "w:one")
        before = daemon.agents()["w:one"]["pid"]
        lxd.end_service()
        wait_until(lambda: "incus cannot be watched" in daemon.said(), "the log says that LXD is not there")
        lxd.start()
        wait_until(lambda: "incus is watched again" in daemon.said(), "LXD is watched again")
        later.start()
        followed.until("w:other", "RUNNING", SOON)
        assert daemon.agents()["w:one"]["pid"] == before
