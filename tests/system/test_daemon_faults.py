"""Faults of the daemon itself: its resources are used up, and come back. It continues, reports them, and recovers."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.cli.client import ControlClient
from tests.system.conftest import Factory
from tests.system.faults import TO_LEGACY, TO_WEB
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import LIMIT, run, wait_until
from tests.system.test_faults_room import fill
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool, send_all, visible

DAY = 86400.0  # seconds
CLIENTS = 100
SERVED_WITHIN = 10.0  # seconds for CLIENTS at once, on two busy cores
ROUNDS = 2000  # of requests by those who do not read: their sockets are full long before
GROWTH = 16 << 20  # bytes that callers who never read may cost: at most one answer for each


@pytest.fixture
def pair(unshare_container: Factory) -> tuple[Any, Any]:
    """Return the container with files, and the one with queues."""
    return unshare_container(), unshare_container()


def relays(daemon: Nsbridged, pair: tuple[Any, Any]) -> None:
    """Assert that one message passes both ways."""
    count = len(visible(pair[0].rootfs / "srv/in"))
    put_into_spool(pair[0].rootfs / "srv/out", [b"there"])
    send_all(pair[1], TO_WEB, [Sent(1, b"back")])
    with Receiver(pair[1], TO_LEGACY, 1) as receiver:
        assert receiver.messages() == [Sent(7, b"there")]
    wait_until(lambda: len(visible(pair[0].rootfs / "srv/in")) == count + 1, "the answer")


# -- the wall clock


@contextmanager
def clock_stepped(seconds: float) -> Iterator[None]:
    """Step the machine's own clock; set it right again by the monotonic clock."""
    before, since = time.clock_gettime(time.CLOCK_REALTIME), time.monotonic()
    try:
        time.clock_settime(time.CLOCK_REALTIME, before + seconds)
    except PermissionError:
        pytest.skip("this machine's clock may not be set: only test_clock.py holds the rule then")
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, before + time.monotonic() - since)


@pytest.mark.alone  # the clock is the machine's
@pytest.mark.parametrize("step", [DAY, -DAY])
def test_a_clock_stepped_by_a_day_and_back_disturbs_nothing(tmp_path: Path, pair: tuple[Any, Any], step: float) -> None:
    """No agent is taken for wedged or started late, no message is lost, no uptime jumps."""
    routes = route(pair[0].spec, pair[1].spec)
    with Nsbridged(tmp_path, routes, 'health = { deadline = "1500ms" }') as daemon:
        daemon.wait_for("RUNNING")
        before = daemon.agents()
        with clock_stepped(step):
            relays(daemon, pair)
            kill_and_wait(before["r:files"]["pid"])
            wait_until(lambda: daemon.agents()["r:files"]["pid"] not in (None, before["r:files"]["pid"]), "back")
            daemon.wait_for("RUNNING")
        relays(daemon, pair)
        after = daemon.agents()
        assert after["r:queue"]["pid"] == before["r:queue"]["pid"]
        assert (after["r:files"]["restarts"], after["r:files"]["last_exit"]) == (1, "killed by SIGKILL")
        assert 0 <= after["r:queue"]["uptime_s"] < LIMIT
        assert "wedged" not in daemon.said()


# -- descriptors, processes


def test_without_descriptors_the_daemon_continues_and_recovers(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """EMFILE meets callers and a dead agent's successor; connected callers are still served, and learn the reason."""
    with (
        Nsbridged(tmp_path, route(pair[0].spec, pair[1].spec)) as daemon,
        ControlClient(str(daemon.socket), LIMIT) as connected,
        ExitStack() as others,
    ):
        daemon.wait_for("RUNNING")
        process = psutil.Process(daemon.pid)
        enough = process.rlimit(psutil.RLIMIT_NOFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds(), enough[1]))
        for _ in range(20):
            caller = others.enter_context(socket.socket(socket.AF_UNIX))
            caller.connect(str(daemon.socket))
        os.kill(_agent(connected, "r:files")["pid"], 9)
        wait_until(lambda: _agent(connected, "r:files")["state"] == "BACKOFF", "it cannot be started")
        wait_until(lambda: "Too many open files" in _agent(connected, "r:files")["detail"], "status says why")
        assert _agent(connected, "r:queue")["state"] == "RUNNING"
        busy = process.cpu_times()
        refused = daemon.said().count("no connections for")
        wait_until(lambda: daemon.said().count("no connections for") >= refused + 2, "a whole pause has passed")
        assert process.cpu_times().user - busy.user < 0.3, "it does not spin"
        process.rlimit(psutil.RLIMIT_NOFILE, enough)
        daemon.wait_for("RUNNING")
        relays(daemon, pair)
        assert "no connections for" in daemon.said()


def _agent(client: ControlClient, name: str) -> dict[str, Any]:
    routes = client.call("status")["routes"]
    found: dict[str, Any] = next(agent for route in routes for agent in route["agents"] if agent["name"] == name)
    return found


@contextmanager
def process_limit(directory: Path) -> Iterator[Path]:
    """Make a cgroup of the pids controller, v1 or v2; yield its directory."""
    mounted = directory / "cgroup"
    mounted.mkdir()
    kind = ["-t", "cgroup", "-o", "pids"] if "pids" in _v1_controllers() else ["-t", "cgroup2"]
    run(["mount", *kind, "none", mounted])
    if kind[1] == "cgroup2":
        (mounted / "cgroup.subtree_control").write_text("+pids", encoding="ascii")
    group = mounted / f"nsb-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
            with suppress(OSError):
                (mounted / "cgroup.procs").write_text(pid, encoding="ascii")
        wait_until(lambda: not (group / "cgroup.procs").read_text(encoding="ascii"), "the group is empty")
        group.rmdir()
        run(["umount", mounted])


def _v1_controllers() -> str:
    lines = Path("/proc/cgroups").read_text(encoding="ascii").splitlines()[1:]
    return " ".join(line.split()[0] for line in lines if line.split()[1] != "0")


def test_when_fork_fails_the_agent_is_retried_until_it_succeeds(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """EAGAIN from the pids controller; status says so. The other agent serves on."""
    with process_limit(tmp_path) as group, Nsbridged(tmp_path, route(pair[0].spec, pair[1].spec)) as daemon:
        daemon.wait_for("RUNNING")
        before = daemon.agents()
        (group / "cgroup.procs").write_text(str(daemon.pid), encoding="ascii")
        (group / "pids.max").write_text("1", encoding="ascii")
        kill_and_wait(before["r:files"]["pid"])
        daemon.wait_for("BACKOFF", "r:files")
        assert "cannot be forked: Resource temporarily unavailable" in daemon.agents()["r:files"]["detail"]
        wait_until(lambda: daemon.said().count("cannot be forked") >= 2, "it is tried again")
        assert daemon.agents()["r:queue"]["pid"] == before["r:queue"]["pid"]
        (group / "pids.max").write_text("max", encoding="ascii")
        daemon.wait_for("RUNNING")
        relays(daemon, pair)
        assert daemon.stop() == 0


# -- the log's disk


def test_a_full_disk_under_the_log_costs_only_counted_lines(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """When there is room again the log reports how many are missing, and continues."""
    logs = tmp_path / "logs"
    logs.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", logs])
    try:
        daemon = Nsbridged(tmp_path, route(pair[0].spec, pair[1].spec))
        text = daemon.config.read_text(encoding="utf-8")
        daemon.config.write_text(text.replace(str(daemon.log), f"{logs}/log"), encoding="utf-8")
        daemon.log = logs / "log"
        with daemon:
            daemon.wait_for("RUNNING")
            filler = fill(logs)
            written = daemon.said()
            while (kept := _tail(daemon)) <= daemon.said().count("\n") + 20:  # until its last page is full, and more
                daemon.call("restart", names=["r:files"], wait=True)
            assert kept < 1000
            assert daemon.said().startswith(written)
            relays(daemon, pair)
            filler.unlink()
            kill_and_wait(daemon.agents()["r:files"]["pid"])
            wait_until(lambda: "records before this could not be written: No space left" in daemon.said(), "it says so")
            daemon.wait_for("RUNNING")
            relays(daemon, pair)
    finally:
        run(["umount", "--lazy", logs])


def _tail(daemon: Nsbridged) -> int:
    """Return how many records it has in memory."""
    with ControlClient(str(daemon.socket), LIMIT) as client:
        return len(list(client.stream("tail", {"count": 1000})))


# -- callers


def test_callers_that_never_read_cost_bounded_memory(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """They ask as fast as they can, until each is held back: no more of it is read before it reads its answers."""
    with Nsbridged(tmp_path, route(pair[0].spec, pair[1].spec)) as daemon, ExitStack() as cleanup:
        daemon.wait_for("RUNNING")
        before = psutil.Process(daemon.pid).memory_full_info().uss
        callers = [cleanup.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(4)]
        for caller in callers:
            caller.connect(str(daemon.socket))
            caller.setblocking(False)
        longest = 0.0
        line = b'{"id": 1, "method": "tail", "params": {"count": 1000}}\n' * 20
        held_back = 0
        for _ in range(ROUNDS):
            held_back = 0
            for caller in callers:
                try:
                    caller.send(line)
                except BlockingIOError:
                    held_back += 1
            asked = time.monotonic()
            daemon.call("version")
            longest = max(longest, time.monotonic() - asked)
        assert held_back == len(callers)
        grown = psutil.Process(daemon.pid).memory_full_info().uss - before
        print(f"another caller waited {longest * 1e3:.0f} ms at most; memory grew by {grown >> 20} MiB")
        assert grown < GROWTH
        assert longest < 1.0
        relays(daemon, pair)


def test_a_hundred_callers_at_once_are_all_answered(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """Each connects, asks, and is still connected when the last one asks."""
    with Nsbridged(tmp_path, route(pair[0].spec, pair[1].spec)) as daemon, ExitStack() as cleanup:
        daemon.wait_for("RUNNING")
        since = time.monotonic()

        def ask(_number: int) -> tuple[ControlClient, str]:
            client = ControlClient(str(daemon.socket), LIMIT)
            return client, client.call("status")["routes"][0]["name"]

        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(ask, range(CLIENTS)))
        took = time.monotonic() - since
        for client, _ in answers:
            cleanup.callback(client.close)
        print(f"{CLIENTS} callers in {took:.2f} s")
        assert [name for _, name in answers] == ["r"] * CLIENTS
        assert took < SERVED_WITHIN
        assert answers[0][0].call("version")
        with pytest.raises(NsbridgeError):
            answers[0][0].call("nothing of the kind")
        relays(daemon, pair)
