"""An agent and its two senders before a pretended queue, each killed between any two of its writes, life after life.

The code is the real one: ExactQueueSink, senders.run, SinkJournal. What is pretended is the kernel (a queue with its
note of who sent last, and process ids) and who runs when: one actor at a time, a sender up to where it yields. After a
kill the others may run for a while, as they do until the kernel gets to them.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbridge.agents import linux, queuestatus
from nsbridge.agents.endpoints.queue import exact_sink as exact_queue
from nsbridge.agents.endpoints.queue import senders
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueIn
from nsbridge.agents.endpoints.queue.exact_sink import ExactQueueSink
from nsbridge.agents.endpoints.queue.senders import Outbox
from nsbridge.agents.journal.journalfile import CELL_COUNT, seal
from nsbridge.agents.journal.sinkjournal import IN_DOUBT, WHICH, SinkJournal
from nsbridge.agents.queuestatus import QueueStatus
from nsbridge.agents.wire import Run
from nsbridge.config.schema import InDoubt

EPOCH, KEY, OWN_TYPE, FOREIGN = 3, 0x51, 1, 9
LIMIT, MSGMAX = 100, 50  # bytes: of the queue, which can be looked at, and of its namespace, which msgsnd reports
ROOM = 4  # messages
REST = 400  # rounds in which all comes to rest


class KilledError(BaseException):
    """SIGKILL: nobody catches it."""


class YieldedError(BaseException):
    """A sender has given its turn away, or sleeps."""


class Cells:
    """Shared memory, in which the actor that writes may be killed before it has."""

    def __init__(self, world: World, cells: Any) -> None:
        self._world = world
        self._cells = cells

    def __getitem__(self, cell: int) -> int:
        return int(self._cells[cell])

    def __setitem__(self, cell: int, value: int) -> None:
        self._world.step()
        self._cells[cell] = value


class World:
    """The kernel, and what outlives an agent: the queue and the journal."""

    def __init__(self, bodies: list[bytes], in_doubt: InDoubt) -> None:
        self.bodies = bodies
        self.queue: list[tuple[int, bytes]] = []
        self.sent: list[bytes] = []  # into the queue, by nsbridge
        self.dead: set[int] = set()
        self.last_pid = 0
        self.pids = count(100)
        self.cells = [0] * CELL_COUNT
        self.cells[1 + 2] = self.cells[5 + 2] = seal(0)
        self.cells[WHICH] = seal(0)
        self.me = 0
        self._in_doubt = in_doubt
        self._left: dict[int, int] = {}  # writes until it is killed, by pid
        self.journal = self._open()
        self.journal.adopt(EPOCH, 0)

    def _open(self) -> SinkJournal:
        file: Any = SimpleNamespace(fd=-1, cells=Cells(self, self.cells), close=lambda: None)
        return SinkJournal(file)

    def step(self) -> None:
        """Let the actor that runs do something that others can see, or die."""
        left = self._left.get(self.me)
        if left is not None:
            if left == 0:
                raise KilledError
            self._left[self.me] = left - 1

    def send(self, mtype: int, body: bytes) -> int:
        if len(body) > MSGMAX:
            return errno.EINVAL
        if len(self.queue) >= ROOM:
            return errno.EAGAIN
        self.step()
        self.queue.append((mtype, body))
        self.last_pid = self.me
        if mtype == OWN_TYPE:
            self.sent.append(body)
        self.step()
        return 0

    def look(self, index: int) -> tuple[int, bytes] | None:
        return self.queue[index] if index < len(self.queue) else None

    def live(self, victim: int, after: int, schedule: list[str]) -> None:
        """Run one life, in which that actor (0 the agent) is killed before its write number `after`."""
        Life(self, self._open(), self._in_doubt, victim, after).run(schedule)

    def kill_at(self, pid: int, writes: int) -> None:
        self._left[pid] = writes


class Life:
    """An agent from its start to its death."""

    def __init__(self, world: World, journal: SinkJournal, in_doubt: InDoubt, victim: int, after: int) -> None:
        self._world, self._journal = world, journal
        self._pids = [next(world.pids) for _ in range(3)]  # of agent, sender 0, sender 1
        self._alive = {0}
        world.kill_at(self._pids[victim], after)
        self._next = journal.handed + 1
        host: Any = SimpleNamespace(
            name="r:a",
            loop=SimpleNamespace(now=lambda: 0.0, watch=lambda *_: None, call_later=lambda *_: None),
            handed=lambda run: journal.hand(run.last),
            dead=self._bury,
            log=lambda *_: None,
            blocked=lambda *_: None,
            vouch=lambda _: None,
            sink_ready=lambda: None,
            senders=lambda _: None,
        )
        self._sink = ExactQueueSink(host, QueueEndpoint(in_=QueueIn(KEY, OWN_TYPE)), KEY, journal, in_doubt)
        self._outbox: Outbox = self._sink._offers.outbox
        self._outbox.cells = Cells(world, self._outbox.cells)  # type: ignore[assignment]
        self._act(0, self._sink.start)

    def _bury(self, one: Run, _where: str, _why: str) -> bool:
        self._world.dead.add(one.first)
        self._world.step()
        self._journal.hand(one.last)
        return True

    def _act(self, who: int, what: Callable[[], object]) -> None:
        if who not in self._alive:
            return
        self._world.me = self._pids[who]
        try:
            what()
        except YieldedError:
            pass
        except KilledError:
            self._alive.discard(who)

    def run(self, schedule: list[str]) -> None:
        for name in schedule:
            self.do(name)

    def do(self, name: str) -> None:
        if name == "put":
            self._act(0, self._put)
        elif name == "noted":
            self._act(0, self._sink._noted)
        elif name == "fork" and 0 in self._alive and len(self._pids) == 3 and not self._sink._offers.pids:
            self._sink._offers.pids = (self._pids[1], self._pids[2])
            self._alive |= {1, 2}
        elif name in ("sender 0", "sender 1"):
            which = int(name[-1])
            self._act(1 + which, lambda: senders.run(which, self._outbox, self._journal))
        elif name == "drain":
            self._world.queue[:1] = []
        elif name == "foreign" and len(self._world.queue) < ROOM:
            self._world.queue.append((FOREIGN, b"foreign"))
            self._world.last_pid = next(self._world.pids)

    def _put(self) -> None:
        bodies = self._world.bodies[self._next - 1 : self._next + 2]
        if bodies:
            self._next += self._sink.put(Run(EPOCH, self._next, 0, bodies))


def _nothing(*_args: object) -> None:
    pass


def _yield(*_args: object) -> object:
    raise YieldedError


@contextmanager
def _pretended(world: World) -> Iterator[None]:
    """Play the kernel's part."""

    def try_msgsnd(_queue: int, address: int, size: int) -> int:
        mtype = int.from_bytes(ctypes.string_at(address, 8), "little")
        return world.send(mtype, ctypes.string_at(address + 8, size))

    def try_msgrcv(_queue: int, address: int, _size: int, index: int, _flags: int) -> int:
        found = world.look(index)
        if found is None:
            return -errno.ENOMSG
        mtype, body = found
        ctypes.memmove(address, mtype.to_bytes(8, "little") + body, 8 + len(body))
        return len(body)

    class Queue:
        id, max_size = 5, LIMIT
        last_send_pid = last_send_time = property(lambda _self: world.last_pid)

    with (
        mock.patch.multiple(
            linux,
            try_msgsnd=try_msgsnd,
            try_msgrcv=try_msgrcv,
            wait_msgsnd=_yield,
        ),
        mock.patch.multiple(
            queuestatus, queue_status=lambda _queue: QueueStatus(0, 0, LIMIT), longest_message=lambda: MSGMAX
        ),
        mock.patch.multiple(exact_queue, open_queue=lambda *_: Queue(), is_there=lambda *_: True),
        mock.patch.multiple(
            os,
            getpid=lambda: world.me,
            eventfd=lambda *_: -1,
            sched_yield=_yield,
            eventfd_read=_yield,
            eventfd_write=_nothing,
        ),
    ):
        yield


ACTS = ["put", "put", "noted", "sender 0", "sender 1", "sender 0", "sender 1", "drain"]
bodies_of_all = st.lists(st.sampled_from(["", "short", "too long", "far too long"]), min_size=1, max_size=7)
lives = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 2]),
        st.integers(0, 30),
        st.lists(st.sampled_from([*ACTS, "fork", "fork"]), max_size=20),
    ),
    max_size=6,
)
lives_with_others = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 2]),
        st.integers(0, 30),
        st.lists(st.sampled_from([*ACTS, "fork", "fork", "foreign"]), max_size=20),
    ),
    max_size=6,
)


def _bodies(kinds: list[str]) -> list[bytes]:
    """Return bodies that all differ, to recognise each again."""
    sizes = {"": 0, "short": 8, "too long": MSGMAX + 1, "far too long": LIMIT + 1}
    return [b"%04d" % number + bytes(sizes[kind]) for number, kind in enumerate(kinds)]


def _lived(kinds: list[str], lives: list[tuple[int, int, list[str]]], in_doubt: InDoubt) -> World:
    """Run all lives, and a last one in which nobody is killed."""
    world = World(_bodies(kinds), in_doubt)
    with _pretended(world):
        for victim, after, schedule in lives:
            world.live(victim, after, schedule)
        world.live(0, 1 << 60, ["put", "fork", *["put", "sender 0", "sender 1", "noted", "drain"] * REST])
    assert world.journal.handed == len(kinds), "nothing stands still"
    return world


@given(bodies_of_all, lives)
def test_alone_at_its_queue_each_message_arrives_once_in_order(
    kinds: list[str], lives: list[tuple[int, int, list[str]]]
) -> None:
    world = _lived(kinds, lives, InDoubt.RESEND)
    assert world.sent == [body for body in world.bodies if len(body) <= MSGMAX]
    assert {seq for seq, body in enumerate(world.bodies, 1) if len(body) > MSGMAX} == world.dead
    assert world.cells[IN_DOUBT] == 0


@pytest.mark.parametrize("in_doubt", list(InDoubt))
@given(bodies_of_all, lives_with_others)
def test_with_other_senders_repeats_and_losses_are_counted(
    in_doubt: InDoubt, kinds: list[str], lives: list[tuple[int, int, list[str]]]
) -> None:
    """`resend` loses nothing, `skip` repeats nothing."""
    world = _lived(kinds, lives, in_doubt)
    wanted = [body for body in world.bodies if len(body) <= MSGMAX]
    found = list(dict.fromkeys(world.sent))
    repeats, losses = len(world.sent) - len(found), len(wanted) - len(found)
    assert found == [body for body in wanted if body in found], "in order"
    assert (losses if in_doubt is InDoubt.RESEND else repeats) == 0
    assert repeats + losses <= world.cells[IN_DOUBT]
