"""Dead letters: messages that can never be handed over, put aside with the reason before they are confirmed.

One message is two files in the agent's own directory `state_dir/dead/ROUTE/AGENT`: EPOCH-SEQ.body, its bytes, and then
EPOCH-SEQ.json, which says why, when and whence, and whose presence makes it one. Writing it again changes nothing.
"""

from __future__ import annotations

import json
import os
import time

from nsbridge.agents.endpoints.files import write_all
from nsbridge.agents.wire import Run


class DeadLetters:
    """The directory, opened before the join."""

    def __init__(self, directory: int) -> None:
        self._directory = directory

    def add(self, one: Run, where: str, why: str) -> bool:
        """Put the one message aside; whether it was not there yet. Raises OSError (no space: nothing is confirmed)."""
        (body,) = one.bodies
        stem = f"{one.epoch:016x}-{one.first:020d}"
        try:
            os.stat(f"{stem}.json", dir_fd=self._directory)
        except FileNotFoundError:
            about = {
                "epoch": one.epoch,
                "seq": one.first,
                "type": one.type,
                "bytes": len(body),
                "where": where,
                "why": why,
                "time": time.time(),
            }
            self._write(f"{stem}.body", body)
            self._write(f"{stem}.json", json.dumps(about).encode())
            return True
        return False

    def _write(self, name: str, data: bytes) -> None:
        part = f".{name}"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)
        os.rename(part, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
