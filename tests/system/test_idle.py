"""An idle daemon sleeps: strace of its whole tree shows the heartbeats, the check of them, and nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.nsbridged import EVIDENCE, SENDERS, Nsbridged
from tests.system.room import LIMIT, tool, wait_until

pytestmark = pytest.mark.alone  # wake-ups are counted, and a busy machine adds some

ROUTES = 5
IDLE_FOR = 11.0  # seconds
BEATS = IDLE_FOR / 5.0 + 2  # of one agent in that time at most; the supervisor's check comes as often
_WAITS = ("epoll_wait", "epoll_pwait", "epoll_pwait2")
_LINE = re.compile(r"^(\d+) .*?(?:<\.\.\. )?(\w+)(?:\(| resumed>)")


def test_an_idle_daemon_wakes_for_heartbeats_only(tmp_path: Path, unshare_container: Factory) -> None:
    """Supervisor, agents, their threads and senders. What waits in msgrcv or for an eventfd is not woken at all."""
    here = unshare_container()
    routes = "".join(
        f'[route.r{number}.agent.files]\ncontainer = "{here.spec}"\n'
        f'spool = {{ out = "/srv/out{number}", in = "/srv/in{number}" }}\n'
        f'[route.r{number}.agent.queue]\ncontainer = "{here.spec}"\n'
        f"queue = {{ in = {{ key = {0x1000 + number} }}, out = {{ key = {0x2000 + number} }}, create = true }}\n"
        for number in range(ROUTES)
    )
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        agents = [agent["pid"] for agent in daemon.agents().values()]
        processes = [daemon.pid, *daemon.processes()]
        assert len(processes) == 1 + (2 + (SENDERS if os.environ.get(EVIDENCE) == "senders" else 0)) * ROUTES
        calls = _traced(processes, tmp_path)
    waking = Counter({pid: sum(n for (of, name), n in calls.items() if of == pid and name in _WAITS) for pid in agents})
    print(f"{ROUTES} routes, {IDLE_FOR:.0f} s: {sum(calls.values())} system calls of {len(processes)} processes")
    assert max(waking.values()) <= BEATS, waking
    assert sum(n for (pid, name), n in calls.items() if pid == daemon.pid and name in _WAITS) <= BEATS, calls
    known = {daemon.pid, *agents}
    assert {key: n for key, n in calls.items() if key[0] not in known} == {}, "threads and senders are not woken"


def _traced(pids: list[int], directory: Path) -> Counter[tuple[int, str]]:
    """Count how often each thread has returned from or made each system call, in IDLE_FOR seconds."""
    output = directory / "strace.out"
    targets = [word for pid in pids for word in ("-p", str(pid))]
    with subprocess.Popen([tool("strace"), "-f", "-o", str(output), *targets], stderr=subprocess.DEVNULL) as strace:
        wait_until(lambda: all(_is_traced(pid) for pid in pids), "strace has them all")
        before = output.stat().st_size
        time.sleep(IDLE_FOR)  # the time that is measured
        strace.send_signal(signal.SIGINT)
        strace.wait(LIMIT)
    calls: Counter[tuple[int, str]] = Counter()
    for line in output.read_bytes()[before:].decode("utf-8", "replace").splitlines():
        found = _LINE.match(line)
        if found and "detached" not in line and "<unfinished ...>" not in line:
            calls[int(found[1]), found[2]] += 1
    return calls


def _is_traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
