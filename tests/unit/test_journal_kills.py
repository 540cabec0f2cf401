"""Journals of processes that are really killed, with messages that really come from a queue."""

from __future__ import annotations

import mmap
import os
import random
import resource
import signal
import struct
import tempfile
import time
from pathlib import Path

import sysv_ipc

from nsbridge.agents import linux
from nsbridge.agents.journal.journalfile import PAGE, FullError
from nsbridge.agents.wire import Message
from tests import child
from tests.journals import content, source


def test_what_a_killed_process_reported_as_kept_is_kept(tmp_path: Path) -> None:
    """It takes from a queue and confirms as fast as it can; killed 60 times: none lost, none invented."""
    path = tmp_path / "a"
    said = memoryview(mmap.mmap(-1, PAGE)).cast("Q")
    queue = sysv_ipc.MessageQueue(None, sysv_ipc.IPC_CREX, 0o600)
    chance = random.Random(3)
    try:
        for _ in range(60):
            pid = child.fork(lambda: _take_and_confirm(path, said, queue.id))
            goal = said[0] + chance.randint(1, 300)
            deadline = time.monotonic() + child.LIMIT
            while said[0] < goal:
                assert time.monotonic() < deadline
            os.kill(pid, signal.SIGKILL)
            assert child.wait(pid) == -signal.SIGKILL
            opened = source(path, 20, 4096)
            _, confirmed, pending = content(opened)
            assert opened.taken in (said[0], said[0] + 1)
            assert pending == [_numbered(confirmed + 1 + number) for number in range(len(pending))]
            while queue.current_messages:  # sent, and certainly not taken
                body, mtype = queue.receive(False)
                assert (mtype, body) == _numbered(opened.taken + 1)
            said[0] = opened.taken
            opened.close()
    finally:
        queue.remove()


def _numbered(seq: int) -> Message:
    return Message(seq, b"%d " % seq * (seq * 7919 % 50))


def _take_and_confirm(path: Path, said: memoryview[int], queue: int) -> int:
    opened = source(path, 20, 4096)
    msgbuf = bytearray(8192)
    while True:
        seq = opened.taken + 1
        message = _numbered(seq)
        length = len(message.body)
        try:
            if seq % 2:
                opened.append(message)
            else:
                (address,) = opened.land([length])
                msgbuf[: 8 + length] = struct.pack("<q", seq) + message.body
                assert not linux.try_msgsnd(queue, linux.address_of(msgbuf), length)
                opened.landed([linux.wait_msgrcv(queue, address, length, 0)])
        except FullError:
            opened.confirm(opened.confirmed + max(1, (opened.taken - opened.confirmed) // 2))
            continue
        said[0] = seq


def test_a_message_lands_in_pages_that_are_there() -> None:
    """A page fault in msgrcv that a kill interrupts would lose the message: the kernel has unlinked it by then."""
    # On a disk, written pages would fault again.
    directory = tempfile.TemporaryDirectory(dir="/dev/shm")
    opened = source(Path(directory.name) / "a", 100, 1 << 20)
    queue = sysv_ipc.MessageQueue(None, sysv_ipc.IPC_CREX, 0o600, 8192)
    faults = 0
    try:
        for number in range(50):
            queue.send(bytes(8000), True, 1 + number)
            (address,) = opened.land([8000])
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            linux.wait_msgrcv(queue.id, address, 8000, 0)
            faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            opened.landed([8000])
    finally:
        queue.remove()
        opened.close()
        directory.cleanup()
    assert faults < 50, "of 98: the others are those of pages that Python itself takes"
