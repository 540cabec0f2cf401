"""The `out` side of the `nats` endpoint: takes messages from a durable pull consumer of JetStream.

The journal keeps each message whole, and the sequence in the stream of the last one taken. So the source recognizes
every message that the server sends again, and an acknowledgement may be late or lost. The source sends it when the
other side has confirmed the message.

The stream decides which message is next; the consumer only brings messages faster. If a connection was lost, the
consumer sends its messages again only after ack_wait, and newer messages before. In a cluster whose servers die, it may
also skip messages or hold some back (seen with nats-server 2.9). So if the sequence in the stream is not the next one,
the source first takes the messages between from the stream itself. It also asks the stream when the consumer has sent
nothing for a while. If such a message comes once more, the source acknowledges and drops it.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from nats.aio.msg import Msg

from nsbridge.agents.endpoints.base import AgentApi, Blocked, EventSource
from nsbridge.agents.endpoints.nats import stream
from nsbridge.agents.endpoints.nats.cells import SEQUENCE, STREAM, TIME
from nsbridge.agents.endpoints.nats.config import STOP, NatsEndpoint
from nsbridge.agents.endpoints.nats.connection import Connection, status_of
from nsbridge.agents.endpoints.nats.errors import NONSENSE, JetStreamError, Unready
from nsbridge.agents.endpoints.nats.link import Link
from nsbridge.agents.endpoints.nats.order import Order
from nsbridge.agents.endpoints.nats.pulls import Pulls
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.wire import Message
from nsbridge.config.schema import Window

_ACK_WAIT = 15  # seconds, of a consumer that the source makes
_ACK = b"+ACK"
_MOST_ARRIVED = 1024  # messages that wait here; it asks for 256 at most
_AT_ONCE = 64  # messages that are taken before others are served


class Arrival(NamedTuple):
    """A message that the consumer has sent."""

    sequence: int  # in the stream
    reply: str  # where its acknowledgement goes
    headers: Mapping[str, str]
    body: bytes
    time: int  # when it was stored, in ns


def arrival(message: Msg) -> Arrival:
    """Return a message with its numbers, which are in the subject of the acknowledgement. Raises ValueError."""
    parts = message.reply.split(".")
    if parts[:2] != ["$JS", "ACK"] or len(parts) < 9:  # noqa: PLR2004  (an account and a domain may come before them)
        raise ValueError(f"no message of a consumer: {message.reply}")
    at = 5 if len(parts) == 9 else 7  # noqa: PLR2004
    time = stream.moment(int(parts[at + 2]))
    return Arrival(stream.sequence(parts[at]), message.reply, message.headers or {}, message.data, time)


class NatsSource(EventSource):
    """Takes each message exactly once, in the order of the stream."""

    name = "out"

    def __init__(
        self, agent: AgentApi, config: NatsEndpoint, journal: SourceJournal, link: Link, window: Window
    ) -> None:
        assert config.out is not None  # noqa: S101  (made only for a configured side)
        self._agent = agent
        self._out = config.out
        self._longest = config.max_message
        self._lost = config.lost
        self._journal = self.store = journal
        self._link = link
        self._window = window
        self._arrived: deque[Arrival] = deque()  # to be taken
        self._held: deque[tuple[int, str]] = deque()  # acknowledgements, each with the seq that it waits for
        self._due: list[str] = []  # those that may leave
        self._last = self._time = 0  # the sequence of the last message taken, and when it was stored
        self._is_idle = False  # the consumer has had nothing for a while
        self._order = Order()
        self._identity = 0  # of the stream
        self._acks_all = False  # one acknowledgement is for all before it
        self._pulls = Pulls()
        self._failed: Exception | None = None
        self._wake = asyncio.Event()

    def start(self) -> None:
        """See Source."""
        self._agent.blocked("out", "connecting to NATS")
        self._link.start(self)

    def room_again(self) -> None:
        """See Source."""
        self._wake.set()

    def confirmed(self, seq: int) -> None:
        """See Source: messages up to `seq` may be acknowledged."""
        while self._held and self._held[0][0] <= seq:
            self._due.append(self._held.popleft()[1])
        if self._due:
            self._wake.set()

    def lend(self) -> bool:
        """See Source: the last one taken stays so."""
        self._note(self._last, self._time)
        return bool(self._identity)

    def _note(self, sequence: int, time: int) -> None:
        """Note the place of the next message; the store that publishes the message also selects the slot."""
        slot = (self._journal.taken + 1) % 2
        cells = self._journal.cells
        cells[SEQUENCE + slot], cells[STREAM + slot], cells[TIME + slot] = sequence, self._identity, time

    async def serve(self, connection: Connection) -> None:
        """See Side."""
        self._arrived.clear()
        self._is_idle, self._failed = False, None
        self._pulls = Pulls()
        await self._survey(connection)
        inbox = connection.inbox()
        async with connection.listening(f"{inbox}.*", self._came):
            self._agent.blocked("out", "")
            await self._pull(connection, inbox)
            while self._failed is None:
                self._wake.clear()
                try:
                    is_more = await self._take(connection)
                finally:
                    self._agent.flush()  # also what was taken before a reason to wait
                await self._acknowledge(connection)
                await self._pull(connection, inbox)
                if is_more:
                    await asyncio.sleep(0)
                else:
                    await self._sleep()
        raise self._failed

    async def _sleep(self) -> None:
        """Wait for an event, or until the server should have answered a pull."""
        timer = asyncio.get_running_loop().call_at(self._pulls.due, self._wake.set) if self._pulls.due else None
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _survey(self, connection: Connection) -> None:
        """Find the stream and the consumer, and what was taken last. Raises Unready, JetStreamError, Lost."""
        out = self._out
        try:
            info = await connection.ask(f"STREAM.INFO.{out.stream}")
        except JetStreamError as error:
            if error.code != stream.NO_STREAM:
                raise
            raise Unready(f"stream {out.stream} is not there; make it") from None
        self._identity = stream.identity(info)
        cells, slot = self._journal.cells, self._journal.taken % 2
        is_known = cells[STREAM + slot] == self._identity
        known, self._time = (cells[SEQUENCE + slot], cells[TIME + slot]) if is_known else (0, 0)
        consumer = await self._consumer(connection, stream.start_after(info, known))
        stream.check_consumer(consumer, out.subject)
        self._is_idle = bool(consumer.get("num_ack_pending"))  # sent to a lost connection: it does not send them soon
        self._acks_all = consumer["config"].get("ack_policy") == "all"
        self._last = known or int(consumer["ack_floor"]["stream_seq"])
        await self._check(connection, int(info["state"]["last_seq"]))

    async def _check(self, connection: Connection, last: int) -> None:
        """Raise Unready if the stream has lost what was taken. Learn the id of the last message that was taken."""
        name, loss = self._out.stream, ""
        one = await self._stored(connection, self._last)
        if last < self._last:
            loss = f"ends with message {last}, and message {self._last} was taken"
        elif one is not None and self._time and one.time not in (0, self._time):
            loss = f"has another message {self._last} than the one that was taken"
        if loss:
            if self._lost == STOP:
                raise Unready(stream.has_lost(name, loss))
            self._agent.log("error", f"stream {name} {loss}: a server of the cluster has lost messages")
            self._last = await self._before(connection, min(last, self._last))
        elif one is not None and self._order.is_empty:
            self._order.took(one.headers)

    async def _before(self, connection: Connection, at: int) -> int:
        """Return the last message up to `at` that was stored before the last one that was taken."""
        while self._time and at:
            one = await self._stored(connection, at)
            if one is None or one.time <= self._time:
                break
            at -= 1
        return at

    async def _stored(self, connection: Connection, sequence: int) -> stream.Stored | None:
        """Return a message of the stream; None if it is deleted."""
        if not sequence:
            return None
        try:
            return stream.stored(await connection.ask(f"STREAM.MSG.GET.{self._out.stream}", seq=sequence))
        except JetStreamError as error:
            if error.code == stream.NO_MESSAGE:
                return None
            raise

    async def _consumer(self, connection: Connection, start: dict[str, Any]) -> dict[str, Any]:
        """Return the server's description of the consumer; make it, to begin at `start`, if it is missing."""
        out = self._out
        try:
            return await connection.ask(f"CONSUMER.INFO.{out.stream}.{out.durable}")
        except JetStreamError as error:
            if error.code != stream.NO_CONSUMER:
                raise
        config = {
            "durable_name": out.durable,
            **start,
            "ack_policy": "explicit",
            "ack_wait": _ACK_WAIT * 10**9,
            "max_ack_pending": 16 * self._window.messages,
            "filter_subject": out.subject,
        }
        self._agent.log("info", f"consumer {out.durable} of stream {out.stream} is missing and is made")
        request = f"CONSUMER.DURABLE.CREATE.{out.stream}.{out.durable}"
        return await connection.ask(request, stream_name=out.stream, config=config)

    async def _came(self, message: Msg) -> None:
        """Take in a message of the consumer, or a pull's end."""
        try:
            status, headers = status_of(message)
            if status:
                self._ended(message.subject, status, headers)
            else:
                self._arrived.append(arrival(message))
                self._pulls.came()
            if len(self._arrived) > _MOST_ARRIVED:
                raise ValueError("it sends more messages than it was asked for")
        except NONSENSE as error:  # nats-py would only report it
            self._failed = error
        self._wake.set()

    def _ended(self, subject: str, status: str, headers: Mapping[str, str]) -> None:
        text = headers.get("Description", "")
        if text.startswith("Batch"):  # completed; from newer servers this may come before the messages
            return
        had_none = self._pulls.ended(int(subject.rpartition(".")[2]), is_too_long="MaxBytes" in text)
        self._is_idle = self._is_idle or had_none
        if status not in ("404", "408") and "MaxBytes" not in text:
            what = f"consumer {self._out.durable} of stream {self._out.stream}: {text[:200]} ({status[:20]})"
            self._failed = Unready(what)

    async def _pull(self, connection: Connection, inbox: str) -> None:
        """Request as many messages as there is room for."""
        messages, size = self._agent.room()
        if self._pulls.are_late(asyncio.get_running_loop().time()):
            self._failed = Unready(f"consumer {self._out.durable} of stream {self._out.stream} does not answer")
            return
        request = self._pulls.next(messages - len(self._arrived), size, asyncio.get_running_loop().time())
        if request is not None:
            number, about = request
            where = f"$JS.API.CONSUMER.MSG.NEXT.{self._out.stream}.{self._out.durable}"
            await connection.publish(where, json.dumps(about).encode(), f"{inbox}.{number}")

    async def _take(self, connection: Connection) -> bool:
        """Take what has come and has room; return True if there may be more at once."""
        if self._is_idle and not self._arrived:
            self._is_idle = False
            await self._fill(connection)
        taken = 0
        while self._arrived and taken < _AT_ONCE:
            one = self._arrived[0]
            if one.sequence > self._last:
                if one.sequence != self._last + 1:
                    await self._fill(connection, one.sequence)
                if not self._has_taken(one):
                    break
            self._held.append((self._journal.taken, one.reply))
            self._arrived.popleft()
            taken += 1
        self.confirmed(self._journal.confirmed)
        return bool(self._arrived) and self._agent.has_room()

    def _has_taken(self, one: Arrival | stream.Stored) -> bool:
        """Take a message; False if there is no room. Raises Unready."""
        sequence, headers, body = one.sequence, one.headers, one.body
        if len(body) > self._longest:
            raise Unready(
                f"message {sequence} of stream {self._out.stream} has {len(body)} bytes, more than max_message "
                f"({self._longest}): raise that"
            )
        if not self._agent.has_room():
            return False
        if hole := self._order.hole(headers):
            self._judge(sequence, hole)
        self._note(sequence, one.time)
        try:
            self._agent.take(Message(stream.type_of(headers), body))
        except Blocked as reason:
            raise Unready(str(reason)) from None
        self._last, self._time = sequence, one.time
        self._order.took(headers)
        return True

    def _judge(self, sequence: int, hole: str) -> None:
        """Decide about messages that are missing. Raises Unready if no limit of the stream can have deleted them."""
        loss = f"lacks {hole}, before its message {sequence}"
        if sequence == self._last + 1 and self._lost == STOP:
            raise Unready(stream.has_lost(self._out.stream, loss))
        why = "its limits have deleted them, or a server of the cluster has lost them"
        self._agent.log("error", f"stream {self._out.stream} {loss}: {why}")

    async def _fill(self, connection: Connection, upto: int = 0) -> None:
        """Take from the stream what follows the last one taken, before the message `upto`. Raises Unready, Lost.

        0: all, until the consumer sends something.
        """
        while self._last + 1 != upto and (upto or not self._arrived):
            request = f"STREAM.MSG.GET.{self._out.stream}"
            try:
                one = stream.stored(await connection.ask(request, seq=self._last + 1, next_by_subj=self._out.subject))
            except JetStreamError as error:
                if error.code != stream.NO_MESSAGE:
                    raise
                if not upto:
                    return
                raise Unready(
                    f"stream {self._out.stream} does not have message {upto}, which its consumer has"
                ) from None
            if one.sequence == upto:
                return
            if one.sequence <= self._last:
                raise ValueError(f"message {one.sequence} in place of one behind {self._last}")
            if upto and one.sequence > upto:
                raise Unready(f"stream {self._out.stream} does not have message {upto}, which its consumer has")
            while not self._has_taken(one):
                self._agent.flush()
                self._wake.clear()
                await self._wake.wait()
                await self._acknowledge(connection)

    async def _acknowledge(self, connection: Connection) -> None:
        due, self._due = self._due, []
        for reply in due[-1:] if self._acks_all else due:
            await connection.publish(reply, _ACK, "")
