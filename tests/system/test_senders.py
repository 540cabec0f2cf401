"""The processes that send into a queue for an exactly-once agent, as status and inspect show them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import wait_until
from tests.system.test_relay import route

pytestmark = pytest.mark.senders


def test_status_names_senders_and_inspect_shows_them(tmp_path: Path, unshare_container: Factory) -> None:
    """Two for the queue agent, its children; none for the other. New ones after a kill."""
    web, legacy = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        agent = daemon.agents()["r:queue"]
        senders = agent["senders"]
        assert [psutil.Process(pid).ppid() for pid in senders] == [agent["pid"]] * 2
        assert daemon.agents()["r:files"]["senders"] == []
        (inspected,) = daemon.call("inspect", name="r:queue")
        assert [sender["pid"] for sender in inspected["senders"]] == senders
        for sender in inspected["senders"]:
            assert sender["ppid"] == inspected["pid"]
            assert sender["capabilities"]["effective"] == []
            assert sender["namespaces"]["ipc"] == inspected["namespaces"]["ipc"]
        (files,) = daemon.call("inspect", name="r:files")
        assert files["senders"] == []
        kill_and_wait(agent["pid"])
        wait_until(lambda: len(set(daemon.agents()["r:queue"]["senders"]) - set(senders)) == 2, "new senders")
        daemon.call("stop", names=["r:queue"], wait=True)
        assert daemon.agents()["r:queue"]["senders"] == []


def test_at_least_once_needs_no_senders(tmp_path: Path, unshare_container: Factory) -> None:
    """The agent sends by itself."""
    web, legacy = unshare_container(), unshare_container()
    routes = route(web.spec, legacy.spec).replace("[route.r]\n", '[route.r]\ndelivery = "at-least-once"\n', 1)
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        assert daemon.agents()["r:queue"]["senders"] == []
        (inspected,) = daemon.call("inspect", name="r:queue")
        assert inspected["senders"] == []


def test_an_agent_cannot_name_another_process_as_its_sender(tmp_path: Path, unshare_container: Factory) -> None:
    """A compromised agent writes its scoreboard itself; nobody else's process is inspected for it."""
    web, legacy = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        agents = daemon.agents()
        first, second = agents["r:queue"]["senders"]
        page = _page_with(daemon.pid, first, second)
        with open(f"/proc/{daemon.pid}/mem", "r+b") as memory:
            for number, hostile in ((0, 1), (1, (1 << 64) - 1)):
                memory.seek(page + 8 * number)
                memory.write(hostile.to_bytes(8, "little"))
        assert daemon.agents()["r:queue"]["senders"] == []
        (inspected,) = daemon.call("inspect", name="r:queue")
        assert inspected["senders"] == []


def _page_with(pid: int, first: int, second: int) -> int:
    """Return the address where the process has these two numbers side by side in shared memory without a file."""
    wanted = first.to_bytes(8, "little") + second.to_bytes(8, "little")
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            area, mode, *_ = line.split()
            if mode == "rw-s" and "/dev/zero" in line:
                start, end = (int(number, 16) for number in area.split("-"))
                memory.seek(start)
                if (at := memory.read(end - start).find(wanted)) >= 0:
                    return start + at
    raise AssertionError("no scoreboard with these senders")
