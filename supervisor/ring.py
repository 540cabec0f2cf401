"""The last of something that goes on for ever (records of the log, events), and who wants to hear of the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Named(Protocol):
    """What a ring keeps."""

    def matches(self, name: str) -> bool:
        """Whether it is about `name`: a route, an agent, or "" for everything."""
        ...

    def item(self) -> dict[str, str]:
        """As JSON has it."""
        ...


T = TypeVar("T", bound=Named)


def concerns(about: str, name: str) -> bool:
    """Whether what is about `about` ("" is the daemon) is asked for by `name`: a route, an agent, "" for everything."""
    return name in ("", about) or about.startswith(name + ":")


class Ring(Generic[T]):
    """The last `kept` of all, in order."""

    def __init__(self, kept: int) -> None:
        self._entries: deque[T] = deque(maxlen=kept)
        self._subscribers: dict[object, tuple[str, Callable[[T], None]]] = {}

    def add(self, entry: T) -> None:
        """Keep it, and tell whoever waits for it."""
        self._entries.append(entry)
        for name, subscriber in tuple(self._subscribers.values()):  # a subscriber may end its subscription
            if entry.matches(name):
                subscriber(entry)

    def recent(self, count: int | None = None, name: str = "") -> list[T]:
        """The last `count` about `name`, oldest first; None: all that are kept."""
        found = [entry for entry in self._entries if entry.matches(name)]
        if count is None:
            return found
        return found[-count:] if count > 0 else []

    def subscribe(self, subscriber: Callable[[T], None], name: str = "") -> Callable[[], None]:
        """Call `subscriber` with everything new about `name`; what is returned ends that."""
        key = object()
        self._subscribers[key] = (name, subscriber)

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe
