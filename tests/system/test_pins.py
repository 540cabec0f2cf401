"""The pins of a counter whose supervisor is dead, as other supervisors treat them (supervisor/host/pins.py)."""

from __future__ import annotations

import hashlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import sysv_ipc

from nsbridge.agents.fork import fork
from nsbridge.supervisor.host import pins
from nsbridge.supervisor.host.counter import BPFFS, KernelCounter
from nsbridge.supervisor.host.pins import Owner
from tests.system.room import wait_until
from tests.system.test_counter import counts_of, end, queue, sending


def left_by_a_dead_supervisor(state_dir: Path, key: int) -> Path:
    """Have a process make a counter, count three messages and die; return the folder of its pins."""

    def main() -> int:
        made = KernelCounter(str(state_dir))
        lease = made.lease("r:a")
        assert lease is not None
        made.register(lease)
        for _ in range(3):
            sysv_ipc.MessageQueue(key).send(b"x")
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    state_dir.mkdir(exist_ok=True)
    assert fork(main).reap() == -signal.SIGKILL
    key_of = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:16]
    (place,) = Path(BPFFS, "nsbridge").glob(f"{key_of}-*")
    return place


def test_dead_supervisors_programs_end_and_its_counts_stay(tmp_path: Path) -> None:
    """They would cost each msgsnd and msgrcv of the host. Its successor continues with the counts."""
    with queue() as target:
        place = left_by_a_dead_supervisor(tmp_path / "dead", target.key)
        other = KernelCounter(str(tmp_path))
        assert not list(place.glob(f"*{pins.LINK}"))
        assert {path.name for path in place.iterdir()} >= {"slots", "names", "processes", "msgsnd", "msgrcv"}
        successor = KernelCounter(str(tmp_path / "dead"))
        try:
            lease = successor.lease("r:a")
            assert lease is not None
            assert counts_of(successor, lease).sent == 3
            child = sending(successor, lease, target.key, 2)
            wait_until(lambda: target.current_messages == 5, "they are sent")
            end(successor, child)
            assert counts_of(successor, lease).sent == 5
        finally:
            successor.remove()
            other.remove()
        assert not place.exists()


def test_pins_of_a_state_dir_that_is_gone_are_removed(tmp_path: Path) -> None:
    with queue() as target:
        place = left_by_a_dead_supervisor(tmp_path / "dead", target.key)
    (tmp_path / "dead").rmdir()
    KernelCounter(str(tmp_path)).remove()
    assert not place.exists()


def test_pins_of_living_and_unknown_supervisors_stay(tmp_path: Path) -> None:
    """A supervisor of another pid namespace may live, and pins without a record are of another version."""
    with queue() as target:
        foreign = left_by_a_dead_supervisor(tmp_path / "foreign", target.key)
        unknown = left_by_a_dead_supervisor(tmp_path / "unknown", target.key)
    found = Owner.of(foreign)
    assert found is not None
    replace(found, pid_namespace=1).claim(foreign)
    (unknown / "owner").unlink()
    for name in ("foreign", "unknown", "living"):
        (tmp_path / name).mkdir(exist_ok=True)
    living = KernelCounter(str(tmp_path / "living"))
    before = {place: set(place.iterdir()) for place in (foreign, unknown, living._place)}
    KernelCounter(str(tmp_path)).remove()
    try:
        assert {place: set(place.iterdir()) for place in before} == before
    finally:
        living.remove()
        for name in ("foreign", "unknown"):
            KernelCounter(str(tmp_path / name)).remove()


def test_owner_is_a_process_and_not_only_a_number(tmp_path: Path) -> None:
    me = Owner.this_process(str(tmp_path))
    me.claim(tmp_path)
    assert Owner.of(tmp_path) == me
    assert me.lives()
    assert not replace(me, start_time=me.start_time + 1).lives()
    for damaged in ("", "1:2:3", "a:b:c:d:/x", "1:2:3:4"):
        (tmp_path / "owner").unlink()
        (tmp_path / "owner").symlink_to(damaged or "-")
        assert Owner.of(tmp_path) is None
