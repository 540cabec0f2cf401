"""A log's source over its lives, for tests: real files, a real journal, and a process that can be killed."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.log.config import Framing, LogEndpoint
from nsbridge.agents.endpoints.log.source import LogSource
from nsbridge.agents.wire import Message
from tests.fake_host import SourceHost
from tests.lives import lives

PARTS = ("endpoints/log/", "endpoints/directory.py", "agents/journal/sourcejournal.py", "agents/journal/store.py")


class Life:
    """A source over its lives; `log` is the file."""

    def __init__(self, directory: Path, framing: Framing = Framing.LINE, limit: int = 1000, window: int = 64) -> None:
        self.directory = directory / "logs"
        self.directory.mkdir()
        self.log = self.directory / "app.log"
        self._config = LogEndpoint(out=str(self.log), framing=framing, max_message=limit)
        self._journal = directory / "journal"
        self._window = window
        self.received: list[Message] = []
        self.said: list[str] = []
        self._host: SourceHost | None = None
        self._source: LogSource | None = None

    @property
    def host(self) -> SourceHost:
        assert self._host is not None
        return self._host

    def create(self, *, confirms: bool = True) -> None:
        """Make a new process; it is not started yet."""
        self._host = SourceHost(self._journal, self.received, self._window)
        self._host.confirms = confirms
        self._source = LogSource(self._host, self._host.tree, self._config, self._host.journal)
        self._host.source = self._source

    def start(self, *, confirms: bool = True) -> None:
        """Run a new process, whose greeting has made it repeat."""
        self.create(confirms=confirms)
        assert self._source is not None
        self._source.start()
        self.host.flush()

    def kill(self) -> None:
        """Let the process be gone."""
        if self._host is not None:
            self.said += self._host.said
            assert self._source is not None
            self._host.lose(self._source._ear.watch)
            self._host = None

    def append(self, data: bytes, *, to: Path | None = None) -> None:
        """Append as a program does that opens the file for each line."""
        with (to or self.log).open("ab", buffering=0) as file:
            file.write(data)

    def rotate(self, to: str = "app.log.1", *, create: bool = True) -> Path:
        """Rotate by rename."""
        target = self.directory / to
        self.log.rename(target)
        if create:
            self.log.touch()
        return target

    def expect(self, *bodies: bytes) -> None:
        """Assert that all of these came by now, and no others."""
        self.host.run_until(lambda: len(self.host.bodies()) >= len(bodies), f"{len(bodies)} messages arrive")
        self.host.settle()
        assert self.host.bodies() == [*bodies]

    def warned(self, part: str) -> int:
        """Return how many warnings contain this, over all lives."""
        return sum(part in text for text in self.said + (self._host.said if self._host else []))


Make = Callable[..., Life]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Yield a maker of sources."""
    yield from lives(Life, tmp_path, monkeypatch)


@pytest.fixture
def life(make: Make) -> Life:
    return make()


def framed(*bodies: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(body)) + body for body in bodies)
