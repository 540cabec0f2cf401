"""A sender that is held up between two looks at what it shares with the agent."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints.queue import senders
from nsbridge.agents.endpoints.queue.senders import Outbox
from nsbridge.agents.journal.journalfile import seal
from nsbridge.agents.wire import Run

CELL, OTHER_CELL = 5, 6  # of the journal: what was noted last, before and after a new epoch


class SentError(Exception):
    """It has sent something."""


class WaitedError(Exception):
    """It has left the turn to the other."""


class HeldUp:
    """The shared cells, whose reader is held up just before it learns whose turn it is; `meanwhile` is what happens."""

    def __init__(self, cells: memoryview[int], meanwhile: Callable[[], object]) -> None:
        self._cells = cells
        self._meanwhile: Callable[[], object] | None = meanwhile

    def __getitem__(self, cell: int) -> int:
        if cell == senders._TURN and self._meanwhile is not None:
            meanwhile, self._meanwhile = self._meanwhile, None
            meanwhile()
        return self._cells[cell]

    def __setitem__(self, cell: int, value: int) -> None:
        self._cells[cell] = value


def raising(error: type[Exception]) -> Callable[..., object]:
    def fail(*_args: object) -> object:
        raise error

    return fail


@pytest.mark.parametrize("what", ["put aside", "another epoch"])
def test_a_turn_that_came_later_than_the_message_is_not_taken(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Message 1 is the other sender's, and is put aside; or the agent begins anew, with another cell. Then 2 is its."""
    monkeypatch.setattr(linux, "try_msgsnd", raising(SentError))
    monkeypatch.setattr(os, "sched_yield", raising(WaitedError))
    noted = [0] * 8
    noted[CELL] = seal(0 << 1 | 1)
    outbox = Outbox()
    real = outbox.cells
    outbox.begin(0, CELL, 0)
    outbox.place(Run(1, 1, 1, [b"one", b"two"]), 1, 0)
    outbox.publish(2)

    def meanwhile() -> None:
        if what == "put aside":
            noted[CELL] = seal(1 << 1 | 1)
        else:
            noted[OTHER_CELL] = seal(1 << 1 | 1)
            outbox.cells = real
            outbox.begin(1, OTHER_CELL, 0)
            outbox.publish(2)
        real[senders._TURN] = 2 & 1 ^ 0  # of message 2 it is sender 0's turn, which of message 1 would be sender 1's

    held_up: Any = HeldUp(real, meanwhile)
    outbox.cells = held_up
    journal: Any = type("Journal", (), {"cells": noted})
    with pytest.raises(WaitedError):
        senders.run(1, outbox, journal)
