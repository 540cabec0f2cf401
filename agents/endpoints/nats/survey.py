"""Asks the server what a sink has published before: the stream, and the last message of it that is ours.

evidence.py shows what follows from that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nsbridge.agents.endpoints.nats import stream
from nsbridge.agents.endpoints.nats.chain import Last
from nsbridge.agents.endpoints.nats.connection import Connection
from nsbridge.agents.endpoints.nats.errors import JetStreamError, Unready
from nsbridge.agents.endpoints.nats.evidence import Id, SinkNotes, parse
from nsbridge.agents.endpoints.nats.stream import StreamState


class Found(NamedTuple):
    """The stream, and the messages in it that concern a sink."""

    state: StreamState
    last: Last
    furthest: Id | None  # the last of our messages that is stored and not yet reported, if one is


class Survey:
    """Looks at the stream of a subject; `is_ours` shows which messages may be unreported."""

    def __init__(self, subject: str, notes: SinkNotes, is_ours: Callable[[Id], bool]) -> None:
        self._subject = subject
        self._notes = notes
        self._is_ours = is_ours

    async def look(self, connection: Connection) -> Found:
        """Find the stream, and how far the messages have come. Raises Unready, JetStreamError, Lost."""
        names = (await connection.ask("STREAM.NAMES", subject=self._subject)).get("streams")
        if not names:
            raise Unready(f"no stream takes the subject {self._subject}; make one, or add the subject to one")
        state = stream.for_sink(await connection.ask(f"STREAM.INFO.{names[0]}"))
        last = await self._find(connection, state.name, last_by_subj=self._subject)
        furthest = await self._furthest(connection, state.name, last)
        if last is None:
            return Found(state, Last(0, None), furthest)
        return Found(state, Last(last.sequence, parse(last.headers.get(stream.ID_HEADER, ""))), furthest)

    @staticmethod
    async def _find(connection: Connection, name: str, **which: object) -> stream.Stored | None:
        try:
            return stream.stored(await connection.ask(f"STREAM.MSG.GET.{name}", **which))
        except JetStreamError as error:
            if error.code == stream.NO_MESSAGE:
                return None
            raise

    async def _furthest(self, connection: Connection, name: str, last: stream.Stored | None) -> Id | None:
        found = last and self._ours(last)
        if found or last is None or self._notes.is_decided:
            return found
        at = self._notes.known  # others have published since: look for ours among theirs
        while at <= last.sequence:
            message = await self._find(connection, name, seq=max(at, 1), next_by_subj=self._subject)
            if message is None:
                break
            found = self._ours(message) or found
            at = message.sequence + 1
        return found

    def _ours(self, message: stream.Stored) -> Id | None:
        found = parse(message.headers.get(stream.ID_HEADER, ""))
        return found if found is not None and self._is_ours(found) else None
