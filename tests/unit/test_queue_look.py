"""A look at a real queue: which message msgrcv would give next, and when the look gives up."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import sysv_ipc

from nsbridge.agents import queuestatus
from nsbridge.agents.endpoints.queue.look import FARTHEST, CrowdedError, QueuePeek


@pytest.fixture
def queue() -> Iterator[sysv_ipc.MessageQueue]:
    made = sysv_ipc.MessageQueue(None, sysv_ipc.IPC_CREX, 0o600, 8192)
    yield made
    made.remove()


def fill(queue: sysv_ipc.MessageQueue, mtype: int, count: int) -> None:
    for _ in range(count):
        queue.send(b"", False, mtype)


@pytest.mark.parametrize(
    ("mtype", "found"),
    [
        (0, [(0, 3), (0, 1), (0, 4), (0, 2)]),
        (2, [(2, 1), (2, 4)]),
        (4, [(4, 2)]),
        (9, []),
        (-9, [(2, 1)]),
        (-4, [(2, 1)]),
        (-1, []),
    ],
)
def test_the_messages_are_those_that_msgrcv_gives(
    queue: sysv_ipc.MessageQueue, mtype: int, found: list[tuple[int, int]]
) -> None:
    for kind, body in ((5, b"333"), (2, b"1"), (2, b"4444"), (4, b"22")):
        queue.send(body, False, kind)
    assert QueuePeek(mtype).next(queue.id, 9, 100) == found
    for kind, length in found:
        assert len(queue.receive(False, kind)[0]) == length


@pytest.mark.parametrize(("most", "size", "count"), [(2, 100, 2), (9, 3, 1), (9, 4, 2), (9, 8, 3)])
def test_no_more_are_looked_at_than_there_is_room_for(
    queue: sysv_ipc.MessageQueue, most: int, size: int, count: int
) -> None:
    """One message more than fits is allowed for, because they are taken one by one."""
    for body in (b"333", b"1", b"4444", b"22"):
        queue.send(body)
    assert len(QueuePeek(0).next(queue.id, most, size)) == count


def test_a_queue_full_of_others_messages_costs_a_moment(queue: sysv_ipc.MessageQueue) -> None:
    """A queue of the default size can hold 16,384 of them; a look past all would take 14 s, with the agent standing."""
    fill(queue, 9, 10_000)
    queue.send(b"x", False, 5)
    started = time.process_time()
    with pytest.raises(CrowdedError, match="1024 messages of other types are in front"):
        QueuePeek(5).next(queue.id, 1, 1)
    assert time.process_time() - started < 1.0


def test_what_is_just_near_enough_is_found(queue: sysv_ipc.MessageQueue) -> None:
    fill(queue, 9, FARTHEST - 1)
    queue.send(b"x", False, 5)
    assert QueuePeek(5).next(queue.id, 1, 1) == [(5, 1)]
    assert queuestatus.queue_status(queue.id).used == 1, "it is still there"


def test_of_too_many_lowest_types_the_first_are_compared(queue: sysv_ipc.MessageQueue) -> None:
    """Taken by exactly the type that was found, it is exactly that message."""
    fill(queue, 9, FARTHEST - 1)
    queue.send(b"xx", False, 5)
    queue.send(b"y", False, 4)
    assert QueuePeek(-5).next(queue.id, 1, 1) == [(5, 2)]
    assert queue.receive(False, 5) == (b"xx", 5)


LONGEST = 100  # bytes


def test_longer_message_of_any_type_ends_the_look(queue: sysv_ipc.MessageQueue) -> None:
    """Messages in front of it are found; then it is the next, with any messages behind it."""
    for body in (b"1", bytes(LONGEST), bytes(LONGEST + 1), b"behind"):
        queue.send(body)
    look = QueuePeek(0, LONGEST)
    assert look.next(queue.id, 9, 1000) == [(0, 1), (0, LONGEST)]
    assert "longer than max_message = 100" in str(look.too_long())
    for _ in range(2):
        queue.receive()
    assert look.next(queue.id, 9, 1000) == []
    assert look.too_long()
    queue.receive()
    assert look.next(queue.id, 9, 1000) == [(0, 6)]
    assert look.too_long() is None


@pytest.mark.parametrize("mtype", [5, -5])
def test_longer_message_is_passed_over_for_a_type(queue: sysv_ipc.MessageQueue, mtype: int) -> None:
    """A look cannot see its type; msgrcv shows if it is the next."""
    queue.send(bytes(LONGEST + 1), False, 9)
    queue.send(b"ours", False, 5)
    look = QueuePeek(mtype, LONGEST)
    assert look.next(queue.id, 1, 1) == [(5, 4)]
    assert look.too_long()


def test_length_beyond_what_is_expected_is_found(queue: sysv_ipc.MessageQueue) -> None:
    """Short messages let the look expect short ones; the buffer grows for the others."""
    look = QueuePeek(0)
    for _ in range(100):
        queue.send(b"")
        assert look.next(queue.id, 1, 1) == [(0, 0)]
        queue.receive()
    queue.send(bytes(8192))
    assert look.next(queue.id, 1, 1) == [(0, 8192)]
