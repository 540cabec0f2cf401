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

from nats.aio.msg import Msg

from nsbridge.agents.endpoints.base import AgentApi, put_in_parts
from nsbridge.agents.endpoints.nats import stream
from nsbridge.agents.endpoints.nats.chain import IN_FLIGHT, Chain, Entry
from nsbridge.agents.endpoints.nats.config import STOP, NatsEndpoint
from nsbridge.agents.endpoints.nats.connection import PATIENCE, Connection, status_of
from nsbridge.agents.endpoints.nats.errors import NONSENSE, Lost, Unready
from nsbridge.agents.endpoints.nats.evidence import Id, SinkNotes
from nsbridge.agents.endpoints.nats.link import Link
from nsbridge.agents.endpoints.nats.stream import StreamState
from nsbridge.agents.endpoints.nats.survey import Found, Survey
from nsbridge.agents.journal.sinkjournal import IN_DOUBT, NOT_DELIVERED, SinkJournal
from nsbridge.agents.wire import Run
from nsbridge.config.schema import InDoubt

_MOST, _MOST_BYTES = 1024, 8 << 20  # that wait here or are in flight
_HEADERS = 1024  # bytes of a message's headers, at most
_BLOCK = 64  # messages that are published before answers are looked at


class _Overtaken(Exception):
    """The message before one of ours is not the expected one."""


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
        self._survey = Survey(self._subject, self._notes, self._is_ours)
        self._link = link
        self._in_doubt = in_doubt
        self._lost = config.lost
        self._waiting: deque[Entry] = deque()  # to be published
        self._chain: Chain | None = None  # what is published, and not yet confirmed
        self._done: list[Entry] = []  # confirmed, and not yet reported
        self._bytes = 0  # of the first two
        self._is_open = False  # the stream is known, and what was published before
        self._was_full = False
        self._limit = IN_FLIGHT  # messages in flight, while all goes well
        self._life = 0  # counts chains; an answer to one of an earlier chain is ignored
        self._broken: Exception | None = None
        self._wake = asyncio.Event()
        self._inbox = ""
        self._timer: asyncio.TimerHandle | None = None
        self._warned: set[str] = set()

    def descriptor(self) -> int:
        """See Sink: the server has written what it confirms."""
        return -1

    def start(self) -> None:
        """See Sink."""
        self._agent.blocked("in", "connecting to NATS")
        self._link.start(self)

    def may_adopt(self) -> bool:
        """See Sink."""
        return not (self._waiting or self._done or self._in_flight())

    def _in_flight(self) -> int:
        return len(self._chain.flying) if self._chain is not None else 0

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
        room = _MOST - len(self._waiting) - self._in_flight()
        if room <= 0 or self._bytes >= _MOST_BYTES:
            return 0
        count = 0
        for count, body in enumerate(run.bodies[:room], 1):
            self._waiting.append(Entry(Id(run.epoch, run.first + count - 1), run.type, body))
            self._bytes += len(body)
            if self._bytes >= _MOST_BYTES:
                break
        return count

    async def serve(self, connection: Connection) -> None:
        """See Side."""
        self._life += 1
        self._inbox = f"{connection.inbox()}.{self._life}."
        self._broken = None
        found = await self._survey.look(connection)
        self._check(found.state)
        self._settle(found)
        self._notes.confirmed(max(found.state.last, found.last.sequence))
        chain = Chain(found.state, connection.version, found.last, self._limit)
        self._warn(found.state, chain)
        try:
            async with connection.listening(f"{self._inbox}*", self._answer):
                self._open(chain)
                while self._broken is None:
                    self._wake.clear()
                    await self._publish(connection, chain)
                    if self._broken is None:
                        await self._wake.wait()
        finally:
            self._close()
        if not isinstance(self._broken, _Overtaken):
            raise self._broken

    def _open(self, chain: Chain) -> None:
        self._chain, self._is_open = chain, True
        self._agent.blocked("in", "")
        self._agent.sink_ready()
        self._agent.flush()

    def _close(self) -> None:
        """End the chain: what was confirmed is reported, and the rest waits again."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._report()
        if self._chain is not None:
            self._waiting.extendleft(reversed(self._chain.flying))
            self._chain = None

    # What was published before

    def _is_ours(self, one: Id) -> bool:
        """True if the message may be stored and not yet reported."""
        return one.epoch == self._journal.epoch or any(one == entry.id for entry in self._waiting)

    def _warn(self, state: StreamState, chain: Chain) -> None:
        """Log, once for each, what the operator may want to change about the stream and the servers."""
        if state.loses:
            self._warn_once(f"{state.loses}; discard = new makes nsbridge wait instead")
        if chain.is_single:
            self._warn_once(
                f"stream {state.name} is on several servers that are older than 2.12: a message is published when the "
                "one before is confirmed, because they may lose some of several in flight"
            )

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._agent.log("warning", text)

    def _check(self, state: StreamState) -> None:
        """Raise Unready if the stream has lost what the server had confirmed."""
        self._notes.found(state.identity)
        if state.last < self._notes.known:
            loss = f"ends with message {state.last}, and the server has confirmed message {self._notes.known}"
            if self._lost == STOP:
                raise Unready(stream.has_lost(state.name, loss))
            self._agent.log("error", f"stream {state.name} {loss}: a server of the cluster has lost messages")

    def _settle(self, found: Found) -> None:
        """Report what is stored; decide what is unknown."""
        furthest = found.furthest
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
        elif self._is_unknown(found.state):
            self._decide()

    def _is_unknown(self, state: StreamState) -> bool:
        """True if messages were in flight, and the stream has lost what would show it."""
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

    async def _publish(self, connection: Connection, chain: Chain) -> None:
        """Publish what waits, as long as there may be more in flight."""
        most = chain.longest(connection.max_payload)
        waiting = self._waiting
        while waiting and chain.has_room() and self._broken is None:
            entry = waiting[0]
            headers = chain.headers(entry)
            if _may_be_too_long(entry, most) and (why := stream.too_long(entry.body, headers, most)):
                if chain.flying or not self._bury(entry, why):
                    return
                continue
            self._notes.begin(*entry.id)
            waiting.popleft()
            number = chain.publish(entry, is_last=not waiting or _may_be_too_long(waiting[0], most))
            self._watch(chain)
            await connection.publish(self._subject, entry.body, f"{self._inbox}{number}" if number else "", headers)
            if not chain.published % _BLOCK:
                await asyncio.sleep(0)

    def _bury(self, entry: Entry, why: str) -> bool:
        self._report()
        if not self._agent.dead(Run(entry.id.epoch, entry.id.seq, entry.type, (entry.body,)), self._subject, why):
            asyncio.get_running_loop().call_later(1, self._wake.set)
            return False
        self._waiting.popleft()
        self._bytes -= len(entry.body)
        return True

    def _watch(self, chain: Chain) -> None:
        """Break the chain if no answer comes."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._check_answer, chain, chain.answered)

    def _check_answer(self, chain: Chain, answered: int) -> None:
        self._timer = None
        if chain.flying and chain.answered == answered:
            self._break(Lost(f"{self._subject}: no message was confirmed in {PATIENCE:.0f} s"))
        elif chain.flying:
            self._watch(chain)

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
        chain = self._chain
        if chain is None or number <= chain.answered or self._broken is not None:
            return
        status, _ = status_of(message)
        if status:
            self._break(Unready(f"no stream takes the subject {self._subject} now ({status})"))
            return
        found = json.loads(message.data)
        if error := found.get("error"):
            self._refused(int(error.get("err_code", 0)), str(error.get("description", "")))
        elif found.get("duplicate"):  # its place is not the one that the server names
            self._break(Unready(f"subject {self._subject}: the server has had a message before that it does not show"))
        else:
            confirmed = chain.confirm(number, stream.sequence(found["seq"]))
            if not self._done:
                asyncio.get_running_loop().call_soon(self._report)
            self._done += confirmed

    def _refused(self, code: int, text: str) -> None:
        if code in stream.WRONG_LAST:
            self._limit = max(self._limit // 4, 1)
            self._break(_Overtaken())
            return
        self._break(Unready(f"subject {self._subject}: {text[:200]} ({code})"))

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
        if self._chain is not None:
            self._notes.confirmed(self._chain.expected)
            self._limit = self._chain.most = min(self._limit + len(done), IN_FLIGHT)
        if self._was_full and len(self._waiting) < _MOST // 2 and self._is_open:
            self._agent.sink_ready()
        self._agent.flush()
        if self._waiting:
            self._wake.set()


def _may_be_too_long(entry: Entry, most: int) -> bool:
    return len(entry.body) + _HEADERS > most
