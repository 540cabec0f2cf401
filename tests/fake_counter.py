"""The kernel's count in this process: of the calls that the endpoints of a queue make (agents/counter.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints.queue import sink as queue_sink
from nsbridge.agents.endpoints.queue.queue import Queue, sender


class FakeCounter:
    """See Counter. `count` has it follow real calls, as the kernel does: a call and its count are one step."""

    life = 7
    skips = 0

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self._lengths: list[int] = []

    def lengths(self, count: int) -> Sequence[int]:
        """See Counter."""
        return self._lengths[len(self._lengths) - count :]

    def count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count what this process sends and receives from now on."""

        def counted(queue: Queue, mtype: int) -> Callable[..., None]:
            send = sender(queue, mtype)

            def counting(body: bytes, waits: bool, type_: int) -> None:
                send(body, waits, type_)
                self.sent += 1

            return counting

        monkeypatch.setattr(queue_sink, "sender", counted)
        for name in ("try_msgrcv", "wait_msgrcv"):
            monkeypatch.setattr(linux, name, self._counted(getattr(linux, name)))
        prepared = linux.PreparedReceive

        def prepare(queue: int, size: int, mtype: int) -> linux.PreparedReceive:
            made = prepared(queue, size, mtype)
            made.call = self._counted(made.call)
            return made

        monkeypatch.setattr(linux, "PreparedReceive", prepare)

    def _counted(self, receive: Callable[..., int]) -> Callable[..., int]:
        def counting(*arguments: int) -> int:
            length = receive(*arguments)
            if length >= 0:
                self.received += 1
                self._lengths.append(length)
            return length

        return counting
