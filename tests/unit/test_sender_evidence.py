"""Evidence after a kill whether a message is in the queue, with other senders and equal messages."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sysv_ipc

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import Blocked
from nsbridge.agents.endpoints.queue.evidence import begun, may_have_begun
from nsbridge.agents.endpoints.queue.queue import last_sender
from nsbridge.agents.endpoints.queue.senders import FAILED
from nsbridge.agents.fork import fork
from nsbridge.agents.journal.sinkjournal import IN_DOUBT
from nsbridge.agents.wire import Run
from tests.exact_life import EPOCH, Foreigner, a_queue, contents, die_sending, killed, live

PING, LIMIT = b"ping", 5.0  # seconds


@pytest.fixture
def queue() -> Iterator[sysv_ipc.MessageQueue]:
    with a_queue() as made:
        yield made


def _die_at(path: Path, key: int, seq: int, body: bytes) -> None:
    """End a life just before it sends that message, its first."""

    def life() -> int:
        setattr(linux, "try_msgsnd", killed(linux.try_msgsnd, after=False))  # noqa: B010  (a function, for mypy)
        with live(path, key) as (_, sink):
            sink.put(Run(EPOCH, seq, 1, [body]))
        return 0

    assert fork(life).reap() == -signal.SIGKILL


@pytest.mark.parametrize("between", [b"two", bytes(9000)])
def test_an_equal_older_message_is_no_evidence_of_sending(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, between: bytes
) -> None:
    """The one before it may be in the queue too, or put aside: the message is sent, and the doubt is counted."""
    path = tmp_path / "a.in"
    with live(path, queue.key) as (host, sink):
        host.run_until(lambda: bool(sink._offers.pids), "the senders")
        assert sink.put(Run(EPOCH, 1, 1, [PING, between])) == 2
        host.run_until(lambda: host.journal.handed == 2, "both are done with")
    _die_at(path, queue.key, 3, PING)
    with Foreigner(queue.key) as foreigner:
        foreigner.send()
    with live(path, queue.key) as (host, sink):
        assert sink.put(Run(EPOCH, 3, 1, [PING])) == 1
        assert host.journal.cells[IN_DOUBT] == 1
        assert contents(queue).count(PING) == 2


def test_message_that_no_sender_began_is_not_in_doubt(tmp_path: Path, queue: sysv_ipc.MessageQueue) -> None:
    """It was offered, and both senders have sent before; a foreign message hides who was last."""
    path = tmp_path / "a.in"

    def life() -> int:
        with live(path, queue.key) as (host, sink):
            host.run_until(lambda: bool(sink._offers.pids), "the senders")
            sink.put(Run(EPOCH, 1, 1, [b"one", b"two"]))
            host.run_until(lambda: host.journal.handed == 2, "both are sent")
            for pid in sink._offers.pids:
                os.kill(pid, signal.SIGSTOP)
                os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
            sink.put(Run(EPOCH, 3, 1, [b"three"]))
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert fork(life).reap() == -signal.SIGKILL
    with Foreigner(queue.key) as foreigner:
        foreigner.send()
    with live(path, queue.key) as (host, sink):
        assert sink.put(Run(EPOCH, 3, 1, [b"three"])) == 1
        assert host.journal.cells[IN_DOUBT] == 0
        host.run_until(lambda: host.journal.handed == 3, "it is sent")
    assert contents(queue) == [b"one", b"two", b"foreign", b"three"]


@pytest.mark.parametrize(
    ("cell", "sender", "is_possible"),
    [
        (begun(8, 3), 8, True),
        (begun(8, 1), 8, False),
        (begun(7, 2), 8, False),
        (begun(7, 2), 0, False),
        (0, 8, True),
        (begun(9, 2), 8, True),
        (begun(8, 3 + (1 << 32)), 8, True),
    ],
    ids=[
        "began it",
        "sent before",
        "the other's",
        "never noted itself",
        "of 0.1.0",
        "of others, before 0.1.0",
        "wraps",
    ],
)
def test_only_a_sender_that_began_leaves_a_doubt(cell: int, sender: int, is_possible: bool) -> None:
    """Sender 8 is the one for message 3; sender 7 has sent message 2."""
    assert may_have_begun(cell, 3, sender, (7, sender)) is is_possible


def test_a_repeated_sender_is_not_taken_for_nobody(tmp_path: Path, queue: sysv_ipc.MessageQueue) -> None:
    """The message was sent and received: what is sent again is counted."""
    with Foreigner(queue.key) as foreigner:
        foreigner.send()
        die_sending(tmp_path / "a.in", queue.key, after=True)
        got = contents(queue)
        foreigner.send()
        with live(tmp_path / "a.in", queue.key) as (host, sink):
            assert sink.put(Run(EPOCH, 1, 1, [b"one"])) == 1
            got += contents(queue)
            assert (got.count(b"one"), host.journal.cells[IN_DOUBT]) == (2, 1)


def test_a_sender_outside_our_pid_namespace_is_not_nobody(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel calls it 0, as it does where nobody has sent."""
    die_sending(tmp_path / "a.in", queue.key, after=True)
    contents(queue)
    with monkeypatch.context() as patched:
        patched.setattr("nsbridge.agents.endpoints.queue.evidence.last_sender", lambda *_: -1)
        with live(tmp_path / "a.in", queue.key) as (host, sink):
            assert sink.put(Run(EPOCH, 1, 1, [b"one"])) == 1
            assert host.journal.cells[IN_DOUBT] == 1


@pytest.mark.parametrize(("pid", "when", "who"), [(7, 1, 7), (0, 0, 0), (0, 1, -1)])
def test_the_last_sender_is_a_process_nobody_or_hidden(pid: int, when: int, who: int) -> None:
    seen: Any = SimpleNamespace(last_send_pid=pid, last_send_time=when)
    assert last_sender(seen, 0x51) == who


@pytest.mark.parametrize(
    ("error", "reason"),
    [(sysv_ipc.PermissionsError, "no permission for uid .* it must be readable"), (sysv_ipc.ExistentialError, "gone")],
)
def test_a_queue_that_may_not_be_looked_at_is_waited_for(error: type[Exception], reason: str) -> None:
    class Unseen:
        @property
        def last_send_pid(self) -> int:
            raise error("gone")

    unseen: Any = Unseen()
    with pytest.raises(Blocked, match=f"queue 0x51: .*{reason}"):
        last_sender(unseen, 0x51)


def test_only_the_message_that_cannot_be_sent_is_put_aside(
    tmp_path: Path, queue: sysv_ipc.MessageQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The senders get on, and fail, while the agent sees how far they are."""
    queue.max_size = 16384
    with live(tmp_path / "a.in", queue.key) as (host, sink):
        host.run_until(lambda: bool(sink._offers.pids), "the senders")
        for pid in sink._offers.pids:
            os.kill(pid, signal.SIGSTOP)
        assert sink.put(Run(EPOCH, 1, 1, [b"one", b"two", b"three", bytes(9000), b"five"])) == 5
        collect = sink._offers.collect

        def meanwhile() -> None:
            collect()
            for pid in sink._offers.pids:
                os.kill(pid, signal.SIGCONT)
            end = time.monotonic() + LIMIT
            while not sink._offers.outbox.cells[FAILED] and time.monotonic() < end:
                time.sleep(0.001)  # polls

        with monkeypatch.context() as patched:
            patched.setattr(sink._offers, "collect", meanwhile)
            sink._noted()
        host.run_until(lambda: host.journal.handed == 5, "all are done with")
        assert [letter.first for letter in host.dead_letters] == [4]
        assert contents(queue) == [b"one", b"two", b"three", b"five"]


@pytest.mark.parametrize("seq", [1, 5])
def test_messages_of_a_lost_journal_take_no_new_number(tmp_path: Path, queue: sysv_ipc.MessageQueue, seq: int) -> None:
    """Nothing shows if it would be sent twice then: it is put aside, and all new messages arrive."""
    new = [b"new %d" % number for number in range(1, 7)]
    with live(tmp_path / "a.in", queue.key) as (host, sink):
        host.journal.adopt(EPOCH + 1, 0)
        old = Run(EPOCH, seq, 1, [b"old", b"old too"])
        assert sink.put(old) == 2
        assert sink.put(Run(EPOCH + 1, 1, 1, new)) == len(new)
        host.run_until(lambda: host.journal.handed == len(new), "they are sent")
        assert contents(queue) == new
        assert [(letter.epoch, letter.first) for letter in host.dead_letters] == [(EPOCH, seq), (EPOCH, seq + 1)]
