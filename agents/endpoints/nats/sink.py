"""The `in` side of the `nats` endpoint: publishes messages to a subject of JetStream.

Messages are published without waiting for an answer, and most of them without one; evidence.py shows what keeps them
in order and single. An error, or an answer that does not come, breaks the chain of those in flight: the server then
refuses all that are behind. The sink asks the server how far they have come, and publishes the rest again.

If other programs publish to the same stream, a message of theirs between two of ours breaks the chain too. The sink
then keeps fewer in flight, down to one, which needs no chain. When messages are confirmed, it keeps more again.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from itertools import groupby
from typing import NamedTuple

from nats.aio.msg import Msg

from nsbridge.agents.endpoints.base import AgentApi, put_in_parts
from nsbridge.agents.endpoints.nats import stream
from nsbridge.agents.endpoints.nats.config import NatsEndpoint
from nsbridge.agents.endpoints.nats.connection import PATIENCE, Connection, status_of
from nsbridge.agents.endpoints.nats.errors import NONSENSE, JetStreamError, Lost, Waits
from nsbridge.agents.endpoints.nats.evidence import Id, SinkNotes, parse
from nsbridge.agents.endpoints.nats.link import Link
from nsbridge.agents.endpoints.nats.stream import StreamState
from nsbridge.agents.journal.sinkjournal import IN_DOUBT, NOT_DELIVERED, SinkJournal
from nsbridge.agents.wire import Run
from nsbridge.config.schema import InDoubt

_MOST, _MOST_BYTES = 1024, 8 << 20  # that wait here or are in flight
_IN_FLIGHT = 256  # messages, at most
_HEADERS = 1024  # bytes of a message's headers, at most
_BLOCK = 64  # messages that are published before answers are looked at
_ANSWERED = 16  # one of so many messages in a row is answered


class _Overtaken(Exception):
    """The message before one of ours is not the expected one."""


class _Entry(NamedTuple):
    """A message that the sink has accepted."""

    id: Id
    type: int
    body: bytes


class NatsSink:
    """Publishes each message exactly once."""

    name = "in"

    def __init__(
        self, agent: AgentApi, config: NatsEndpoint, journal: SinkJournal, link: Link, in_doubt: InDoubt
    ) -> None:
        assert config.in_ is not None  # noqa: S101  (made only for a configured side)
        self._agent = agent
        self._subject = config.in_.subject
        self._journal = journal
        self._notes = SinkNotes(journal)
        self._link = link
        self._in_doubt = in_doubt
        self._waiting: deque[_Entry] = deque()  # to be published
        self._flying: deque[_Entry] = deque()  # published, and not yet confirmed
        self._done: list[_Entry] = []  # confirmed, and not yet reported
        self._bytes = 0  # of the first two
        self._is_open = False  # the stream is known, and what was published before
        self._was_full = False
        self._limit = _IN_FLIGHT  # messages in flight, while all goes well
        self._life = 0  # counts chains; an answer to one of an earlier chain is ignored
        self._published = self._answered = 0  # messages of this chain
        self._expected = 0  # the sequence of the subject's last message
        self._broken: Exception | None = None
        self._stream: StreamState | None = None
        self._wake = asyncio.Event()
        self._inbox = ""
        self._timer: asyncio.TimerHandle | None = None
        self._warned = ""

    def descriptor(self) -> int:
        """See Sink: the server has written what it confirms."""
        return -1

    def start(self) -> None:
        """See Sink."""
        self._agent.blocked("in", "connecting to NATS")
        self._link.start(self)

    def may_adopt(self) -> bool:
        """See Sink."""
        return not (self._waiting or self._flying or self._done)

    def put(self, run: Run) -> int:
        """See Sink."""
        count = put_in_parts(run, self._put_some)
        self._was_full = count < len(run.bodies)
        if self._waiting:
            self._wake.set()
        return count

    def _put_some(self, run: Run) -> int:
        if not self._is_open:
            return 0
        if run.epoch == self._journal.epoch and run.first <= self._journal.handed:  # the server had it before the kill
            done = run.before(min(len(run.bodies), self._journal.handed - run.first + 1))
            self._agent.handed(done)
            return len(done.bodies)
        room = _MOST - len(self._waiting) - len(self._flying)
        if room <= 0 or self._bytes >= _MOST_BYTES:
            return 0
        count = 0
        for count, body in enumerate(run.bodies[:room], 1):
            self._waiting.append(_Entry(Id(run.epoch, run.first + count - 1), run.type, body))
            self._bytes += len(body)
            if self._bytes >= _MOST_BYTES:
                break
        return count

    async def serve(self, connection: Connection) -> None:
        """See Side."""
        self._life += 1
        self._inbox = f"{connection.inbox()}.{self._life}."
        self._broken = None
        self._waiting.extendleft(reversed(self._flying))
        self._flying.clear()
        self._published = self._answered = 0
        try:
            await self._survey(connection)
            async with connection.listening(f"{self._inbox}*", self._answer):
                self._open()
                while self._broken is None:
                    self._wake.clear()
                    await self._publish(connection)
                    if self._broken is None:
                        await self._wake.wait()
        finally:
            self._is_open = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._report()
        if not isinstance(self._broken, _Overtaken):
            raise self._broken

    def _open(self) -> None:
        self._is_open = True
        self._agent.blocked("in", "")
        self._agent.sink_ready()
        self._agent.flush()

    # What was published before

    async def _survey(self, connection: Connection) -> None:
        """Find the stream, and how far the messages have come. Raises Waits, JetStreamError, Lost."""
        names = (await connection.ask("STREAM.NAMES", subject=self._subject)).get("streams")
        if not names:
            raise Waits(f"no stream takes the subject {self._subject}; make one, or add the subject to one")
        self._stream = stream.for_sink(await connection.ask(f"STREAM.INFO.{names[0]}"))
        if self._stream.loses != self._warned:
            self._warned = self._stream.loses
            if self._warned:
                self._agent.log("warning", f"{self._warned}; discard = new makes nsbridge wait instead")
        last = await self._find(connection, last_by_subj=self._subject)
        self._expected = last.sequence if last is not None else 0
        self._settle(await self._furthest(connection, last))

    async def _find(self, connection: Connection, **which: object) -> stream.Stored | None:
        assert self._stream is not None  # noqa: S101  (known by now)
        try:
            return stream.stored(await connection.ask(f"STREAM.MSG.GET.{self._stream.name}", **which))
        except JetStreamError as error:
            if error.code == stream.NO_MESSAGE:
                return None
            raise

    async def _furthest(self, connection: Connection, last: stream.Stored | None) -> Id | None:
        """Return the last of our messages that is stored and not yet reported; None if none is."""
        found = last and self._ours(last)
        if found or last is None or self._notes.is_decided:
            return found
        at = self._notes.known  # others have published since: look for ours among theirs
        while at <= last.sequence:
            message = await self._find(connection, seq=max(at, 1), next_by_subj=self._subject)
            if message is None:
                break
            found = self._ours(message) or found
            at = message.sequence + 1
        return found

    def _ours(self, message: stream.Stored) -> Id | None:
        found = parse(message.headers.get(stream.ID_HEADER, ""))
        if found is None or (found.epoch != self._journal.epoch and all(found != entry.id for entry in self._waiting)):
            return None
        return found

    def _settle(self, furthest: Id | None) -> None:
        """Report what is stored; decide what is unknown."""
        if furthest is not None:
            if furthest.seq > self._journal.handed:
                text = f"messages up to {furthest.seq} are stored; those up to {self._journal.handed} were confirmed"
                self._agent.log("info", f"{self._subject}: {text}")
            if any(entry.id == furthest for entry in self._waiting):
                while self._waiting:
                    entry = self._waiting.popleft()
                    self._done.append(entry)
                    if entry.id == furthest:
                        break
                self._report()
            elif furthest.epoch == self._journal.epoch:
                self._journal.hand(furthest.seq)
        elif self._is_unknown():
            self._decide()

    def _is_unknown(self) -> bool:
        """True if messages were in flight, and the stream has lost what would show it."""
        state = self._stream
        assert state is not None  # noqa: S101  (known by now)
        if self._notes.is_decided or state.last <= self._notes.known:
            return False
        return not state.is_whole or state.first > self._notes.known + 1

    def _decide(self) -> None:
        first, count = self._journal.handed + 1, self._notes.begun - self._journal.handed
        is_again = self._in_doubt is InDoubt.RESEND
        what = "published again" if is_again else "skipped"
        self._agent.log(
            "warning",
            f"{self._subject}: unknown whether {count} messages from {first} were stored before the interruption, "
            f"because the stream has deleted what would show it: {what}",
        )
        self._journal.cells[IN_DOUBT] += count
        if not is_again:
            self._journal.cells[NOT_DELIVERED] += count
            last = self._notes.begun
            while self._waiting and self._waiting[0].id.seq <= last:
                self._done.append(self._waiting.popleft())
            self._report()
            self._journal.hand(last)

    # What is published now

    async def _publish(self, connection: Connection) -> None:
        """Publish what waits, as long as there may be more in flight."""
        assert self._stream is not None  # noqa: S101  (known by now)
        most = connection.max_payload
        if self._stream.max_message >= 0:
            most = min(most, self._stream.max_message)
        while self._waiting and len(self._flying) < self._room() and self._broken is None:
            entry = self._waiting[0]
            headers = self._headers(entry, self._stream.name)
            if _may_be_too_long(entry, most) and (why := stream.too_long(entry.body, headers, most)):
                if self._flying or not self._bury(entry, why):
                    return
                continue
            self._notes.begin(*entry.id)
            self._waiting.popleft()
            self._flying.append(entry)
            self._published += 1
            self._watch()
            reply = f"{self._inbox}{self._published}" if self._wants_answer(most) else ""
            await connection.publish(self._subject, entry.body, reply, headers)
            if not self._published % _BLOCK:
                await asyncio.sleep(0)

    def _room(self) -> int:
        """Return how many messages may be in flight: one until the first of a chain is confirmed.

        In a replicated stream always one: nats-server 2.9 loses count of messages that its replicas refuse when they
        apply them, if one is killed, and then loses others. With one in flight only the leader refuses.
        """
        return self._limit if self._answered and self._stream and not self._stream.is_replicated else 1

    def _wants_answer(self, most: int) -> bool:
        """True if the server must answer this message: an answer is for all before it, and costs as much as a message.

        The first of a chain is answered too, because its error has the reason; later errors only show a broken chain.
        """
        waiting, number = self._waiting, self._published
        if number == 1 or not number % _ANSWERED or not waiting or len(self._flying) >= self._room():
            return True
        return _may_be_too_long(waiting[0], most)

    def _headers(self, entry: _Entry, name: str) -> dict[str, str]:
        headers = {stream.ID_HEADER: str(entry.id)}
        if self._flying:
            headers[stream.BEHIND_HEADER] = str(self._flying[-1].id)
        else:
            headers["Nats-Expected-Stream"] = name
            headers["Nats-Expected-Last-Subject-Sequence"] = str(self._expected)
        if entry.type > 0:
            headers[stream.TYPE_HEADER] = str(entry.type)
        return headers

    def _bury(self, entry: _Entry, why: str) -> bool:
        self._report()
        if not self._agent.dead(Run(entry.id.epoch, entry.id.seq, entry.type, (entry.body,)), self._subject, why):
            asyncio.get_running_loop().call_later(1, self._wake.set)
            return False
        self._waiting.popleft()
        self._bytes -= len(entry.body)
        return True

    def _watch(self) -> None:
        """Break the chain if no answer comes."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._check, self._answered)

    def _check(self, answered: int) -> None:
        self._timer = None
        if self._flying and self._answered == answered:
            self._break(Lost(f"{self._subject}: no message was confirmed in {PATIENCE:.0f} s"))
        elif self._flying:
            self._watch()

    def _break(self, error: Exception) -> None:
        self._broken = self._broken or error
        self._wake.set()

    async def _answer(self, message: Msg) -> None:
        """Take the server's answer to a message of the chain, which is for all before it, too."""
        try:
            self._understand(message)
        except NONSENSE as error:  # nats-py would only report it
            self._break(error)

    def _understand(self, message: Msg) -> None:
        number = int(message.subject[len(self._inbox) :]) if message.subject.startswith(self._inbox) else 0
        if number <= self._answered or self._broken is not None:
            return
        status, _ = status_of(message)
        if status:
            self._break(Waits(f"no stream takes the subject {self._subject} now ({status})"))
            return
        if number > self._published:
            raise ValueError(f"it confirms message {number} of {self._published}")
        found = json.loads(message.data)
        if error := found.get("error"):
            self._refused(int(error.get("err_code", 0)), str(error.get("description", "")))
            return
        count, self._answered, self._expected = number - self._answered, number, stream.sequence(found["seq"])
        if not self._done:
            asyncio.get_running_loop().call_soon(self._report)
        for _ in range(count):
            self._done.append(self._flying.popleft())

    def _refused(self, code: int, text: str) -> None:
        if code in stream.WRONG_LAST:
            self._limit = max(self._limit // 4, 1)
            self._break(_Overtaken())
            return
        self._break(Waits(f"subject {self._subject}: {text[:200]} ({code})"))

    def _report(self) -> None:
        """Report what is confirmed."""
        done, self._done = self._done, []
        for (epoch, mtype), group in groupby(done, lambda entry: (entry.id.epoch, entry.type)):
            entries = list(group)
            run = Run(epoch, entries[0].id.seq, mtype, [entry.body for entry in entries])
            self._bytes -= run.size
            self._agent.handed(run)
        if not done:
            return
        self._notes.confirmed(self._expected)
        self._limit = min(self._limit + len(done), _IN_FLIGHT)
        if self._was_full and len(self._waiting) < _MOST // 2 and self._is_open:
            self._agent.sink_ready()
        self._agent.flush()
        if self._waiting:
            self._wake.set()


def _may_be_too_long(entry: _Entry, most: int) -> bool:
    return len(entry.body) + _HEADERS > most
