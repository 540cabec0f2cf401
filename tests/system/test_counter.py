"""The kernel's count as evidence: what it promises, what it falls back to, and who cannot change it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sysv_ipc

from nsbridge.agents import counter as agents_counter
from nsbridge.agents.counter import Counter, Lease
from nsbridge.agents.fork import Child, fork
from nsbridge.supervisor.host import bpf
from nsbridge.supervisor.host import counter as host_counter
from nsbridge.supervisor.host.counter import BPFFS, KernelCounter, Unavailable
from tests.system.classic_storm import Storm
from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import tool, wait_until
from tests.system.test_dead_letters import ctl

_SPOOL_TO_QUEUE = """
[route.r]
[route.r.agent.files]
container = "{web}"
spool = {{ out = "/srv/out" }}
[route.r.agent.queue]
container = "{legacy}"
queue = {{ in = {{ key = 0x51, type = 1 }}, create = true }}
"""


@pytest.fixture
def kernel_counter(tmp_path: Path) -> Iterator[KernelCounter]:
    made = KernelCounter(str(tmp_path))
    yield made
    made.remove()


@contextmanager
def queue() -> Iterator[sysv_ipc.MessageQueue]:
    made = sysv_ipc.MessageQueue(None, sysv_ipc.IPC_CREX, 0o600)
    try:
        yield made
    finally:
        made.remove()


def counts_of(made: KernelCounter, lease: Lease) -> Counter:
    """Return a view of the slot that leaves the counter's own descriptor open."""
    return agents_counter.open_slot(Lease(os.dup(lease.slots), lease.slot, lease.life, lease.skips))


def sending(made: KernelCounter, lease: Lease, key: int, count: int) -> Child:
    """Fork a registered process that sends so many messages and then waits to be killed."""

    def main() -> int:
        made.register(lease)
        target = sysv_ipc.MessageQueue(key)
        for number in range(count):
            target.send(bytes(number))
        signal.pause()
        return 0

    return fork(main)


def end(made: KernelCounter, child: Child) -> None:
    """Kill it, and forget its pid before it is reaped, as the supervisor does."""
    child.kill()
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    made.forget(child.pid)
    child.reap()


# -- the counter itself


def test_counts_outlive_process_and_supervisor(tmp_path: Path) -> None:
    """Everything may be killed at once: the next supervisor finds maps, programs and counts by their pins."""
    with queue() as target:
        made = KernelCounter(str(tmp_path))
        lease = made.lease("r:a")
        assert lease is not None
        child = sending(made, lease, target.key, 5)
        wait_until(lambda: target.current_messages == 5, "they are sent")
        life = made.life
        made.close()  # as if it were killed: nothing is cleaned up
        child.kill()
        child.reap()
        again = KernelCounter(str(tmp_path))
        found = again.lease("r:a")
        assert found is not None
        assert (again.life, found.slot, counts_of(again, found).sent) == (life, lease.slot, 5)
        again.remove()


def test_received_messages_are_counted_with_their_lengths(kernel_counter: KernelCounter) -> None:
    lease = kernel_counter.lease("r:a")
    assert lease is not None
    with queue() as source:
        for length in (7, 0, 300):
            source.send(bytes(length))

        def main() -> int:
            kernel_counter.register(lease)
            for _ in range(3):
                source.receive(True)
            return 0

        child = fork(main)
        os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
        kernel_counter.forget(child.pid)
        assert child.reap() == 0
    seen = counts_of(kernel_counter, lease)
    assert (seen.sent, seen.received, list(seen.lengths(3))) == (0, 3, [7, 0, 300])


def test_failed_calls_and_other_processes_are_not_counted(kernel_counter: KernelCounter) -> None:
    lease = kernel_counter.lease("r:a")
    assert lease is not None
    with queue() as target:
        child = sending(kernel_counter, lease, target.key, 2)
        wait_until(lambda: target.current_messages == 2, "they are sent")
        for _ in range(10):
            target.send(b"another process")
        end(kernel_counter, child)
        target.send(b"after the end")
        assert counts_of(kernel_counter, lease).sent == 2


def test_pids_of_a_former_supervisor_are_forgotten(tmp_path: Path) -> None:
    """Another process may have got such a pid: what it sends is not the agent's."""
    made = KernelCounter(str(tmp_path))
    lease = made.lease("r:a")
    assert lease is not None
    made.register(lease)  # this process, in the place of an agent that is dead
    made.close()
    again = KernelCounter(str(tmp_path))
    try:
        with queue() as target:
            target.send(b"x")
        found = again.lease("r:a")
        assert found is not None
        assert counts_of(again, found).sent == 0
    finally:
        again.remove()


def test_no_process_can_change_a_count(kernel_counter: KernelCounter) -> None:
    """Not even root: no writable mapping, no update by system call, no change of a mapping's protection."""
    lease = kernel_counter.lease("r:a")
    assert lease is not None
    with pytest.raises(PermissionError):
        mmap.mmap(lease.slots, mmap.PAGESIZE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        bpf.update(lease.slots, lease.slot.to_bytes(4, "little"), bytes(agents_counter.SLOT_SIZE))
    page = mmap.mmap(lease.slots, mmap.PAGESIZE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(_address(page))
    assert libc.mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == -1
    assert ctypes.get_errno() == errno.EACCES


def _address(page: mmap.mmap) -> int:
    """Return the address of the map's newest mapping, from /proc/self/maps."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if "bpf-map" in line]
    assert page
    return int(lines[0].split("-")[0], 16)


def test_each_agent_keeps_its_slot(kernel_counter: KernelCounter) -> None:
    leases = [kernel_counter.lease(name) for name in ("r:a", "r:b", "r:a")]
    assert [lease.slot for lease in leases if lease] == [1, 2, 1]


def test_pins_of_another_version_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its programs may count otherwise. What its agents left in flight is in doubt, by the life in their journals."""
    made = KernelCounter(str(tmp_path))
    first, life = made._place, made.life
    made.close()
    monkeypatch.setattr(host_counter, "LENGTHS", agents_counter.LENGTHS // 2)
    other = KernelCounter(str(tmp_path))
    try:
        assert not first.exists()
        assert other.life != life
    finally:
        other.remove()


def test_nothing_is_left_after_an_orderly_end(tmp_path: Path) -> None:
    made = KernelCounter(str(tmp_path))
    place = made._place
    assert {path.name for path in place.iterdir()} >= {"slots", "names", "processes", "msgsnd", "msgsnd-link"}
    made.remove()
    assert not place.exists()


def test_counter_works_in_a_nested_pid_namespace(tmp_path: Path) -> None:
    """The program sees pids of the supervisor's own namespace. One pinned for another would count nothing there."""
    KernelCounter(str(tmp_path)).close()
    program = """
import os, sys, sysv_ipc
from nsbridge.agents import counter
from nsbridge.supervisor.host.counter import KernelCounter
made = KernelCounter(sys.argv[1])
lease = made.lease("r:a")
made.register(lease)
queue = sysv_ipc.MessageQueue(None, sysv_ipc.IPC_CREX)
queue.send(b"x")
queue.send(b"y")
queue.remove()
print(os.getpid(), counter.open_slot(lease).sent)
"""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        assert (done.stdout, done.stderr) == ("1 2\n", "")
    finally:
        KernelCounter(str(tmp_path)).remove()


# -- where it cannot be had


@contextmanager
def without_bpffs(directory: Path) -> Iterator[list[str]]:
    """Give the command through which a daemon starts with nothing at /sys/fs/bpf, nor a place for it."""
    yield ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/fs && exec "$@"', str(directory)]


@pytest.mark.parametrize("evidence", ["auto", "senders"])
def test_daemon_without_counter_uses_senders(tmp_path: Path, unshare_container: Factory, evidence: str) -> None:
    web, legacy = unshare_container(), unshare_container()
    routes = _SPOOL_TO_QUEUE.format(web=web.spec, legacy=legacy.spec)
    with without_bpffs(tmp_path) as through:
        daemon = Nsbridged(tmp_path, routes, f'evidence = "{evidence}"', through if evidence == "auto" else ())
        with daemon:
            daemon.wait_for("RUNNING")
            agents = daemon.agents()
            assert (agents["r:queue"]["evidence"], agents["r:files"]["evidence"]) == ("senders", None)
            assert len(agents["r:queue"]["senders"]) == 2
            why = f"no bpffs is mounted at {BPFFS}" if evidence == "auto" else 'evidence = "senders" in [daemon]'
            assert why in agents["r:queue"]["no_counter"]
            assert why[:30] in ctl(daemon, "inspect", "r:queue").stdout
            assert evidence != "auto" or why in daemon.said()


def test_required_counter_that_cannot_be_had_is_fatal(tmp_path: Path, unshare_container: Factory) -> None:
    web, legacy = unshare_container(), unshare_container()
    routes = _SPOOL_TO_QUEUE.format(web=web.spec, legacy=legacy.spec)
    with without_bpffs(tmp_path) as through, Nsbridged(tmp_path, routes, 'evidence = "counter"', through) as daemon:
        daemon.wait_for("FATAL", "r:queue")
        detail = daemon.agents()["r:queue"]["detail"]
        assert detail.startswith('evidence = "counter" in [daemon], and the kernel cannot count here: no bpffs')
        assert detail.endswith('or set evidence = "auto"')
        daemon.wait_for("RUNNING", "r:files")


def test_refusal_of_the_kernel_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses without CAP_BPF and CAP_PERFMON, or with lockdown=confidentiality."""

    def refused(*_: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(bpf, "load", refused)
    with pytest.raises(
        Unavailable, match="the kernel forbids it, although nsbridged has CAP_BPF and CAP_PERFMON: is it locked down"
    ):
        KernelCounter(str(tmp_path))


@pytest.mark.parametrize(
    ("lacks", "named"), [("-sys_admin,-bpf", "CAP_BPF"), ("-sys_admin,-bpf,-perfmon", "CAP_BPF and CAP_PERFMON")]
)
def test_missing_capability_is_named(tmp_path: Path, kernel_counter: KernelCounter, lacks: str, named: str) -> None:
    """Without a container's own power over the host: CAP_SYS_ADMIN would do as well."""
    assert kernel_counter.life, "a bpffs is mounted"
    program = """
import sys
from nsbridge.supervisor.host.counter import KernelCounter, Unavailable
try:
    KernelCounter(sys.argv[1])
except Unavailable as reason:
    print(reason)
"""
    command = [tool("setpriv"), "--bounding-set", lacks, sys.executable, "-c", program, str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert f"it lacks {named}" in done.stdout
    assert "\n" not in done.stdout.strip()


# -- with agents


@pytest.mark.counter
def test_agent_with_counter_is_one_process(tmp_path: Path, unshare_container: Factory) -> None:
    web, legacy = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, _SPOOL_TO_QUEUE.format(web=web.spec, legacy=legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        assert daemon.agents()["r:queue"]["evidence"] == "counter"
        assert daemon.agents()["r:queue"]["senders"] == []
        (web.rootfs / "srv" / "out" / "x").write_bytes(b"x")
        wait_until(lambda: daemon.flow("r:files")["delivered"] == 1, "it is delivered")
        wait_until(lambda: len(daemon.processes()) == 2, "there is no process but the agents")
        kill_and_wait(daemon.agents()["r:queue"]["pid"])
        daemon.wait_for("RUNNING")
        assert daemon.flow("r:files")["in_doubt"] == 0


@pytest.mark.counter
@pytest.mark.parametrize("rate", [0, 2000])
def test_classic_program_gets_each_question_once(tmp_path: Path, unshare_container: Factory, rate: int) -> None:
    """One queue, two types, a stranger in it, every process killed at random. docs/delivery.md has the long form."""
    outcome = Storm(tmp_path, unshare_container(), unshare_container(), seed=rate).run(6000, 40, rate)
    assert outcome.evidence == "counter"
    assert outcome.problems() == []


@pytest.mark.counter
def test_everything_killed_at_once_loses_and_repeats_nothing(tmp_path: Path, unshare_container: Factory) -> None:
    """Supervisor and both agents; the counts are in the kernel's memory, by their pins."""
    storm = Storm(tmp_path, unshare_container(), unshare_container(), seed=5)
    outcome = storm.run(3000, 20, 0, ("everything",))
    assert outcome.problems() == []
