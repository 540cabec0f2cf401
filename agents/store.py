"""What a source keeps for repeating: the journal itself (journal.py), or for files of the container only what finds
them again, because the file itself is the journal."""

from __future__ import annotations

from collections.abc import Callable

from nsbridge.agents.journal import SourceJournal
from nsbridge.agents.wire import VOID, Message

NOTE = 1  # the type of a record that is a note; the message is in the container
BODY = 2  # the type of a record that is a message itself
Load = Callable[[bytes], Message | None]


class NoteStore:
    """A SourceStore whose journal holds a note for each message, and whose messages are in memory or loaded again.

    `load` is set by the source: it reads the message that a note describes, None if it cannot now; a message that is
    no more gives VOID.
    """

    def __init__(self, journal: SourceJournal) -> None:
        self.journal = journal
        self.epoch = journal.epoch
        self.pending_bytes = 0
        self.load: Load = lambda _note: None
        self._messages: dict[int, Message] = {}

    @property
    def confirmed(self) -> int:
        """The last seq that the sink has confirmed."""
        return self.journal.confirmed

    @property
    def taken(self) -> int:
        """The last seq that was given out."""
        return self.journal.taken

    def append(self, message: Message) -> int:
        """Keep a message that is nowhere in the container; returns its seq. Raises FullError."""
        return self._kept(self.journal.append(Message(BODY, message.body)), message)

    def note(self, message: Message, note: bytes) -> int:
        """Keep what finds the message again; returns its seq. Raises FullError."""
        return self._kept(self.journal.append(Message(NOTE, note)), message)

    def note_of(self, seq: int) -> bytes:
        """The note of a message; empty if it has none. Also of a confirmed one, until the next is taken."""
        kind, note = self.journal.get(seq)
        return note if kind == NOTE else b""

    def get(self, seq: int) -> Message | None:
        """The message `seq`, which must be pending; None if it cannot be read now."""
        message = self._messages.get(seq)
        if message is None:
            kind, body = self.journal.get(seq)
            message = self.load(body) if kind == NOTE else Message(0, body)
            if message is not None:
                self._kept(seq, message)
        return message

    def confirm(self, seq: int) -> None:
        """Let go of all up to `seq`, which must be pending."""
        for done in range(self.confirmed + 1, seq + 1):
            message = self._messages.pop(done, VOID)
            self.pending_bytes -= len(message.body)
        self.journal.confirm(seq)

    def _kept(self, seq: int, message: Message) -> int:
        self._messages[seq] = message
        self.pending_bytes += len(message.body)
        return seq
