"""Defines what a source keeps to repeat messages: whole messages (sourcejournal.py), or notes that find them again.

Notes are enough for files of the container: the file itself is the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.wire import MAX_PACKET, Message, Run

NOTE = 1  # the type of a record that is a note, of one message or several; they are in the container
BODY = 2  # the type of a record that is a message itself
Load = Callable[[bytes, int], tuple[int, Sequence[bytes]] | None]


class NoteStore:
    """A SourceStore whose journal holds notes, and whose messages are in memory or loaded again.

    With a note and a seq that it is for, `load` reads that message, and those after it that the note is for, or some.
    It returns their type and bodies; None if it cannot read them now. For a message that is gone it returns VOID.
    If messages travel with names, `name_of` finds the name in a note, empty if there is none.
    """

    def __init__(self, journal: SourceJournal, load: Load, name_of: Callable[[bytes], bytes] | None = None) -> None:
        self.journal = journal
        journal.keeps_fresh = False
        self._name_of = name_of
        self.epoch = journal.epoch
        self.pending_bytes = 0
        self._load = load
        self._runs: dict[int, Run] = {}  # by the first seq; what is in memory of the pending messages
        self._long: set[int] = set()  # the first seqs of those of several messages
        self._last_found = Run(0, 0, 0, ())

    @property
    def confirmed(self) -> int:
        """Return the last seq that the sink has confirmed."""
        return self.journal.confirmed

    @property
    def taken(self) -> int:
        """Return the last seq that was given out."""
        return self.journal.taken

    def append(self, message: Message) -> int:
        """Keep a message that is nowhere in the container; returns its seq. Raises FullError."""
        return self._kept(self.journal.append(Message(BODY, message.body)), message.type, (message.body,))

    def note(self, mtype: int, bodies: Sequence[bytes], note: bytes) -> int:
        """Keep what finds these messages again; returns the last one's seq. Raises FullError."""
        return self._kept(self.journal.append(Message(NOTE, note), len(bodies)), mtype, bodies)

    def note_of(self, seq: int) -> bytes:
        """Return the note of a message; empty if it has none.

        It also works for a confirmed message, until the next one is taken.
        """
        kind, note = self.journal.get(seq)
        return note if kind == NOTE else b""

    def run(self, seq: int) -> Run | None:
        """Pending messages from `seq` on, of one type; None if that one cannot be read now."""
        found = self._find(seq)
        if found is None:
            kind, record = self.journal.get(seq)
            loaded = self._load(record, seq) if kind == NOTE else (0, (record,))
            if loaded is None:
                return None
            mtype, bodies = loaded[0], loaded[1][: self.taken - seq + 1]  # a forged note may be for more
            self._kept(seq + len(bodies) - 1, mtype, bodies)
            found = self._runs[seq]
        if seq > found.first:
            found = found.after(seq - found.first)
        found = self._with_more(found) if len(found.bodies) == 1 and found.last < self.taken else found
        return found if self._name_of is None else found.named(self._names(found, self._name_of))

    def _names(self, run: Run, name_of: Callable[[bytes], bytes]) -> list[bytes]:
        notes = (self.note_of(seq) for seq in range(run.first, run.last + 1))
        return [name_of(note) if note else b"" for note in notes]

    def _with_more(self, run: Run) -> Run:
        """Together with what follows it in memory and is of its type: files are noted one by one, and sent together."""
        bodies, size = list(run.bodies), run.size
        while size < MAX_PACKET:
            more = self._runs.get(run.first + len(bodies))
            if more is None or more.type != run.type:
                break
            bodies += more.bodies
            size += more.size
        return Run(run.epoch, run.first, run.type, bodies, (), size)

    def _find(self, seq: int) -> Run | None:
        found = self._runs.get(seq)
        if found is None:
            found = self._last_found
            if not found.first <= seq <= found.last:
                long = (self._runs[first] for first in self._long)
                found = next((run for run in long if run.first <= seq <= run.last), None)
        if found is not None:
            self._last_found = found
        return found

    def confirm(self, seq: int) -> None:
        """Release all messages up to `seq`, which must be pending."""
        done = self.confirmed
        while done < seq:
            done += 1
            run = self._runs.pop(done, None)
            if run is not None:
                gone = run.before(min(len(run.bodies), seq - done + 1))
                self.pending_bytes -= gone.size
                self._long.discard(gone.first)
                if gone.last < run.last:
                    self._put(run.after(len(gone.bodies)))
                done = gone.last
        self.journal.confirm(seq)

    def _kept(self, last: int, mtype: int, bodies: Sequence[bytes]) -> int:
        first = last - len(bodies) + 1
        run = Run(self.epoch, first, mtype, bodies)
        self._put(run)
        self.pending_bytes += run.size
        return last

    def _put(self, run: Run) -> None:
        self._runs[run.first] = run
        if len(run.bodies) > 1:
            self._long.add(run.first)
