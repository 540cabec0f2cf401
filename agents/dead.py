"""Dead letters: messages that can never be handed over, put aside with the reason before they are confirmed.

One message is two files in the agent's own directory `state_dir/dead/ROUTE/AGENT`: EPOCH-SEQ.body, its bytes, and then
EPOCH-SEQ.json, which says why, when and whence, and whose presence makes it one. Writing it again changes nothing.
"""

from __future__ import annotations

import json
import os
import time

from nsbridge.agents.endpoints.files import write_all
from nsbridge.agents.sinkjournal import DEAD, NOT_DELIVERED, SinkJournal
from nsbridge.agents.wire import Run


class DeadLetters:
    """The directory, opened before the join, of the sink with that journal.

    If an agent was killed between putting the next message aside and noting that, its decision stands, whatever the
    endpoint takes by now: or the message would be delivered, and be a dead letter too.
    """

    def __init__(self, directory: int, journal: SinkJournal | None) -> None:
        self._directory = directory
        self._journal = journal
        if journal is not None and self._has(journal.epoch, journal.handed + 1):
            self._count(journal.epoch)
            journal.hand(journal.handed + 1)

    def add(self, one: Run, where: str, why: str) -> bool:
        """Put the one message aside; whether it was not there yet. Raises OSError (no space: nothing is confirmed)."""
        (body,) = one.bodies
        if self._has(one.epoch, one.first):
            return False
        about = {
            "epoch": one.epoch,
            "seq": one.first,
            "type": one.type,
            "bytes": len(body),
            "where": where,
            "why": why,
            "time": time.time(),
        }
        name = stem(one.epoch, one.first)
        self._write(f"{name}.body", body)
        self._write(f"{name}.json", json.dumps(about).encode())
        self._count(one.epoch)
        return True

    def _has(self, epoch: int, seq: int) -> bool:
        try:
            os.stat(f"{stem(epoch, seq)}.json", dir_fd=self._directory)
        except FileNotFoundError:
            return False
        return True

    def _count(self, epoch: int) -> None:
        assert self._journal is not None  # noqa: S101  (there is a sink)
        self._journal.cells[DEAD] += 1
        if epoch == self._journal.epoch:  # of another it is not among those that were handed
            self._journal.cells[NOT_DELIVERED] += 1

    def _write(self, name: str, data: bytes) -> None:
        part = f".{name}"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)
        os.rename(part, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)


def stem(epoch: int, seq: int) -> str:
    """Of a letter's two files' names."""
    return f"{epoch:016x}-{seq:020d}"
