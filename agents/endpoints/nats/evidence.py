"""Decides what a sink had published when its connection or its agent ended, by what the server keeps. No I/O.

Each message has an id, (epoch, seq), in the header Nats-Msg-Id, and a condition that holds only directly after the
message before it. The first in flight names the sequence of the last message of the subject. Each later one names the
message before it, which the stream may not have yet (chain.py), by its sequence and by its id. The sequence alone would
not do: as many messages of other programs as of ours were refused would make it the expected one again. So the server
stores the messages in order and each at most once, even if some are lost, repeated or hours late on the way. No window
of time limits this.

After any interruption the last message of the subject shows which of ours are stored:
1. It is one of ours: all up to it are stored, and none after it.
2. Another program has published it: the messages since the last known one are searched for ours.
3. A limit of the stream has deleted it: if the stream has stored nothing since the last known message, none of ours in
   flight is stored. Otherwise that is unknown, and `in_doubt` decides.

If the stream ends before the last message that was confirmed, the cluster has lost messages, or its new leader has yet
to catch up. The sink then publishes nothing: that would end the chance that another leader has them.
"""

from __future__ import annotations

from typing import NamedTuple

from nsbridge.agents.endpoints.nats import cells
from nsbridge.agents.journal.sinkjournal import SinkJournal


class Id(NamedTuple):
    """A message."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch:016x}-{self.seq}"


def parse(text: str) -> Id | None:
    """Return the message that a header names; None if that is none of nsbridge's."""
    epoch, _, seq = text.partition("-")
    try:
        return Id(int(epoch, 16), int(seq))
    except ValueError:
        return None


class SinkNotes:
    """The cells of a sink's journal that belong to NATS."""

    def __init__(self, journal: SinkJournal) -> None:
        self._journal = journal
        self._cells = journal.cells

    def begin(self, epoch: int, seq: int) -> None:
        """Note that messages up to `seq` are about to be published."""
        if epoch == self._journal.epoch and seq > self.begun:
            if self._cells[cells.BEGUN_EPOCH] != epoch:
                self._cells[cells.BEGUN] = 0
                self._cells[cells.BEGUN_EPOCH] = epoch
            self._cells[cells.BEGUN] = seq

    @property
    def begun(self) -> int:
        """Return the last seq of the journal's epoch that was about to be published; 0 if none was."""
        return self._cells[cells.BEGUN] if self._cells[cells.BEGUN_EPOCH] == self._journal.epoch else 0

    @property
    def is_decided(self) -> bool:
        """True if nothing was in flight when the former agent ended."""
        return self.begun <= self._journal.handed

    def found(self, stream: int) -> None:
        """Note the identity of the stream that is published to: another one has confirmed nothing."""
        if self._cells[cells.CONFIRMED_IN] not in (0, stream):
            self._cells[cells.CONFIRMED_AT] = 0
        self._cells[cells.CONFIRMED_IN] = stream

    def confirmed(self, sequence: int) -> None:
        """Note where in the stream the last message is that the server has confirmed."""
        self._cells[cells.CONFIRMED_AT] = sequence

    @property
    def known(self) -> int:
        """Return a sequence of the stream behind which all messages in flight are; 0 if none is known."""
        return self._cells[cells.CONFIRMED_AT]
