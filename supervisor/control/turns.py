"""Lets users take turns: one user delays another by one item at most, however many it has queued."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Items of several users, each with its own queue; `next` goes round the users."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[T]] = {}

    def __bool__(self) -> bool:
        """Return whether anything waits."""
        return bool(self._queues)

    def add(self, uid: int, item: T) -> None:
        """Put an item at the end of that user's queue."""
        self._queues.setdefault(uid, deque()).append(item)

    def next(self, may: Callable[[int], bool] = lambda _uid: True) -> T | None:
        """Take the first item of the user whose turn it is; skip users for whom `may` is False. None if no item is
        left.
        """
        for uid, queue in self._queues.items():
            if may(uid):
                del self._queues[uid]
                item = queue.popleft()
                if queue:
                    self._queues[uid] = queue  # behind all others
                return item
        return None

    def discard(self, uid: int, item: T) -> None:
        """Take an item out; harmless if it does not wait."""
        queue = self._queues.get(uid)
        if queue is not None and item in queue:
            queue.remove(item)
            if not queue:
                del self._queues[uid]
