"""Two sessions over a pretended link, killed at any moment: nothing is lost, repeated, out of order or stuck.

The link is what the supervisor keeps: two queues of packets with little room that outlive both sessions. What a side
holds besides its stores (the packet that the socket refused, what waits for its sink, what its sink has in hand) is
lost when it is killed. Some messages have the type of the one before, so that runs are of one and of several. From `a`
to `b` most messages have names, short and long ones.
"""

from __future__ import annotations

from collections import deque
from itertools import count, pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nsbridge.agents.incoming import Incoming
from nsbridge.agents.outgoing import Outgoing
from nsbridge.agents.session import Session
from nsbridge.agents.wire import MAX_PACKET, RUN_MESSAGE_OVERHEAD, RUN_OVERHEAD, Message, Run
from nsbridge.config.schema import Window
from tests.memory_store import MemorySink, MemorySource, next_waiting

WINDOW = Window(messages=4, bytes=150_000)
LINK_ROOM = 3  # packets
FITS = MAX_PACKET - RUN_OVERHEAD - RUN_MESSAGE_OVERHEAD  # the longest body that goes in one packet
SIZES = [0, 1, 50, FITS - 1, FITS, FITS + 1, MAX_PACKET, 2 * FITS, 2 * FITS + 1, 200_000]
MANY = 5_000  # passes in which any link has come to rest

names = st.sampled_from(["a", "b"])
some_passes = st.sampled_from([0, 1, 2, 5, MANY])
who_is_stuck = st.sampled_from(["", "a", "b", "ab"])
last_acts = st.sampled_from(["", "receive_one", "send_one", "pick_up", "hand_over"])


def name_of(epoch: int, seq: int) -> bytes:
    """Return the name of a message's file; some messages have none."""
    return (b"%d-%d" % (epoch, seq)).ljust((0, 10, 255)[seq % 3], b"x") if seq % 4 else b""


class Side:
    """An agent: stores, a session over them, and what dies with it."""

    def __init__(self, numbers: count[int], inbox: deque[bytes], outbox: deque[bytes], sends_names: bool) -> None:
        self._numbers = numbers
        self._sends_names = sends_names
        self.inbox, self.outbox = inbox, outbox
        self.forget_source()
        self.sink = MemorySink()
        self.taken: dict[tuple[int, int], Message] = {}  # by epoch and seq, of every life
        self.handed: list[Run] = []  # of every life
        self.begin_life()

    def act(self, name: str) -> None:
        """Do what it still does before it is killed."""
        if name:
            getattr(self, name)()

    def begin_life(self) -> None:
        self.outgoing = Outgoing(self.source, WINDOW)
        self.incoming = Incoming(self.sink, WINDOW, keeps_names=not self._sends_names)
        self.session = Session(next(self._numbers), self.outgoing, self.incoming)
        self.unsent = b""
        self.in_hand: Run | None = None
        self.life_began_at = len(self.handed)

    def forget_source(self) -> None:
        self.source = MemorySource(next(self._numbers), name_of if self._sends_names else None)

    def forget_sink(self) -> None:
        self.sink = MemorySink()

    def take(self, size: int) -> None:
        number = next(self._numbers)
        message = Message(number // 4 + 1, (b"%d," % number * size)[:size])
        self.taken[self.source.epoch, self.source.append(message)] = message

    def send_one(self) -> bool:
        self.unsent = self.unsent or self.session.next_packet()
        if not self.unsent or len(self.outbox) >= LINK_ROOM:
            return False
        self.outbox.append(self.unsent)
        self.unsent = b""
        return True

    def receive_one(self) -> bool:
        if not self.inbox:
            return False
        self.session.receive(self.inbox[0])  # WireError would say that an honest peer did wrong
        self.inbox.popleft()
        return True

    def pick_up(self) -> bool:
        if self.in_hand is None and self.incoming.waiting:
            self.in_hand = next_waiting(self.incoming)
        return self.in_hand is not None

    def hand_over(self) -> bool:
        if not self.pick_up():
            return False
        assert self.in_hand is not None
        self.handed.append(self.in_hand)
        self.incoming.handed(self.in_hand)
        self.in_hand = None
        return True

    def put_back(self) -> None:
        assert self.in_hand is not None
        self.incoming.put_back(self.in_hand)
        self.in_hand = None


class Pair(RuleBasedStateMachine):
    """Steps of all variants, and what holds in all of them."""

    def __init__(self) -> None:
        super().__init__()
        numbers, there, back = count(1), deque[bytes](), deque[bytes]()
        self.sides = {"a": Side(numbers, back, there, True), "b": Side(numbers, there, back, False)}

    def directions(self) -> list[tuple[Side, Side]]:
        a, b = self.sides["a"], self.sides["b"]
        return [(a, b), (b, a)]

    @rule(name=names, size=st.sampled_from(SIZES))
    def take(self, name: str, size: int) -> None:
        if self.sides[name].outgoing.has_room():
            self.sides[name].take(size)

    @rule(name=names)
    def send_one(self, name: str) -> None:
        self.sides[name].send_one()

    @rule(name=names)
    def receive_one(self, name: str) -> None:
        self.sides[name].receive_one()

    @rule(name=names)
    def pick_up(self, name: str) -> None:
        self.sides[name].pick_up()

    @rule(name=names)
    def hand_over(self, name: str) -> None:
        self.sides[name].hand_over()

    @precondition(lambda self: any(side.in_hand for side in self.sides.values()))
    @rule(name=names)
    def put_back(self, name: str) -> None:
        if self.sides[name].in_hand:
            self.sides[name].put_back()

    @rule(name=names, size=st.sampled_from(SIZES), passes=some_passes, stuck=who_is_stuck)
    def take_what_the_window_lets(self, name: str, size: int, passes: int, stuck: str) -> None:
        while self.sides[name].outgoing.has_room():
            self.sides[name].take(size)
        self.everything_moves_but_a_stuck_sink(passes, stuck)

    @rule(passes=some_passes, stuck=who_is_stuck)
    def everything_moves_but_a_stuck_sink(self, passes: int, stuck: str) -> None:
        for _ in range(passes):
            if not self._move([side for name, side in self.sides.items() if name not in stuck]):
                return

    @rule(name=names)
    def kill_after_reading_the_other_s_first_words(self, name: str) -> None:
        reader, other = self.sides[name], self.sides["ab".replace(name, "")]
        other.begin_life()
        other.send_one()
        while reader.receive_one():
            pass
        reader.begin_life()

    @rule()
    def everything_comes_to_rest(self) -> None:
        passes = 0
        while self._move(list(self.sides.values())):
            passes += 1
            assert passes < MANY, "the two repeat without end"
        for source, sink in self.directions():
            assert source.session.greeted, "a session that is never greeted"
            assert not source.session.next_packet()
            assert source.source.confirmed == source.source.taken, "taken and not confirmed, with nothing under way"
            assert source.outgoing.has_room()
            assert sink.incoming.idle()
            delivered = {(arrived.epoch, arrived.first) for arrived in sink.handed}
            owed = {(source.source.epoch, seq) for seq in range(1, source.source.taken + 1)}
            assert owed <= delivered, "taken and never handed over"

    def _move(self, handing: list[Side]) -> bool:
        moved = [side.receive_one() | side.send_one() for side in self.sides.values()]
        return any(moved + [side.hand_over() for side in handing])

    def teardown(self) -> None:
        self.everything_comes_to_rest()

    @invariant()
    def what_is_handed_over_is_what_was_taken(self) -> None:
        for source, sink in self.directions():
            for arrived in sink.handed[-2:]:
                assert source.taken[arrived.epoch, arrived.first] == Message(arrived.type, arrived.bodies[0])
                name = name_of(arrived.epoch, arrived.first) if source is self.sides["a"] else b""
                assert b"".join(arrived.names) == name

    @invariant()
    def one_life_of_a_sink_sees_each_epoch_in_order_and_without_gaps(self) -> None:
        for _, sink in self.directions():
            seen = sink.handed[sink.life_began_at :]
            for before, after in pairwise(seen):
                assert before.epoch <= after.epoch
                assert before.epoch < after.epoch or before.first + 1 == after.first

    @invariant()
    def nothing_is_confirmed_that_was_not_handed_over(self) -> None:
        for source, sink in self.directions():
            delivered = {(arrived.epoch, arrived.first) for arrived in sink.handed}
            assert all((source.source.epoch, seq) in delivered for seq in range(1, source.source.confirmed + 1))

    @invariant()
    def what_waits_keeps_to_the_window(self) -> None:
        for side in self.sides.values():
            bodies = [len(body) for run in side.incoming.waiting for body in run.bodies]
            assert len(bodies) <= WINDOW.messages + 1  # one may have been put back
            assert sum(bodies) < WINDOW.bytes + 2 * max(SIZES)


class JournalsSurvive(Pair):
    """A kill costs the process and what it held; the stores stay: exactly once, in order."""

    @rule(name=names, last=last_acts)
    def kill(self, name: str, last: str) -> None:
        self.sides[name].act(last)
        self.sides[name].begin_life()

    @invariant()
    def exactly_once_and_in_order(self) -> None:
        for source, sink in self.directions():
            handed = [(arrived.epoch, arrived.first) for arrived in sink.handed]
            assert handed == list(source.taken)[: len(handed)]


class MemoryIsLost(Pair):
    """A kill costs the stores too, both or one: at least once, and the order within an epoch."""

    @rule(name=names, last=last_acts, loses=st.sampled_from(["source", "sink", "both"]))
    def kill(self, name: str, last: str, loses: str) -> None:
        side = self.sides[name]
        side.act(last)
        if loses != "sink":
            side.forget_source()
        if loses != "source":
            side.forget_sink()
        side.begin_life()

    @rule(name=names, sizes=st.lists(st.sampled_from(SIZES), min_size=2, max_size=4))
    def sources_come_and_go_before_a_stuck_sink(self, name: str, sizes: list[int]) -> None:
        """Let each source fill the window, whatever those before it have left waiting."""
        side = self.sides[name]
        for size in sizes:
            side.forget_source()
            side.begin_life()
            self.take_what_the_window_lets(name, size, MANY, "ab".replace(name, ""))

    @invariant()
    def what_is_new_comes_in_order(self) -> None:
        for source, sink in self.directions():
            highest: dict[int, int] = {}
            for arrived in sink.handed:
                assert arrived.first <= highest.get(arrived.epoch, 0) + 1, "handed over before an earlier one"
                highest[arrived.epoch] = max(arrived.first, highest.get(arrived.epoch, 0))
            assert highest.keys() <= {epoch for epoch, _ in source.taken}


STEPS = settings(stateful_step_count=50, max_examples=150)
TestJournalsSurvive = JournalsSurvive.TestCase
TestJournalsSurvive.settings = STEPS
TestMemoryIsLost = MemoryIsLost.TestCase
TestMemoryIsLost.settings = STEPS
