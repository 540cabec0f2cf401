"""An Answer without a connection: it keeps what a method of the control socket answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.control.answer import Answer


class Answered:
    """Runs the work of a child at once, in this process; `test_api.py` holds its methods against Answer's."""

    def __init__(self) -> None:
        self.is_open = True
        self.items: list[object] = []
        self.results: list[object] = []
        self.errors: list[NsbridgeError] = []
        self.follows = False
        self._callbacks: list[Callable[[], None]] = []

    @property
    def answer(self) -> Answer:
        return cast(Answer, self)

    def item(self, value: object) -> None:
        if self.is_open:
            self.items.append(value)

    def result(self, value: object) -> None:
        if self.is_open:
            self.is_open = False
            self.results.append(value)

    def error(self, error: NsbridgeError) -> None:
        if self.is_open:
            self.is_open = False
            self.errors.append(error)

    def by_child(self, work: Callable[[], object], otherwise: Callable[[], None] | None = None) -> None:
        try:
            self.result(work())
        except NsbridgeError as error:
            self.error(error)

    def follow(self) -> None:
        self.follows = True

    def on_close(self, callback: Callable[[], None]) -> None:
        if self.is_open:
            self._callbacks.append(callback)

    def abandon(self) -> None:
        """Disconnect as the caller."""
        self.is_open = False
        for callback in self._callbacks:
            callback()
