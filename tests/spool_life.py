"""Runs a spool's source under test in its directory: shows what it takes and logs, and kills it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.source import KeptName, SpoolSource
from nsbridge.agents.wire import Message
from tests.fake_host import SourceHost
from tests.lives import lives


class Life:
    """A source of `out`, until `kill`; `move` configures a `done` directory, `more` further keys.

    `kept_name` is that of the sink across, if that keeps names.
    """

    def __init__(
        self,
        directory: Path,
        *,
        move: bool = False,
        window: int = 64,
        kept_name: KeptName | None = None,
        **more: object,
    ) -> None:
        self._kept_name = kept_name
        self.out, self.done = directory / "out", directory / "done"
        done = str(self.done) if move else None
        self._config = SpoolEndpoint(out=str(self.out), done=done, max_message=1000, **more)  # type: ignore[arg-type]
        self._journal = directory / "journal"
        self._window = window
        self.received: list[Message] = []
        self.out.mkdir()
        self.start()

    def start(self) -> None:
        self.make()
        self.begin()

    def make(self) -> None:
        """Open the journal, and make a source that does not yet work."""
        self.host = SourceHost(self._journal, self.received, self._window)
        self.source = SpoolSource(self.host, self.host.tree, self._config, self.host.journal, kept_name=self._kept_name)
        self.host.source = self.source

    def begin(self) -> None:
        self.source.start()
        self.host.flush()

    def kill(self) -> None:
        if self.source._names._scan is not None:
            self.source._names._scan.listing.close()  # type: ignore[attr-defined]  # else Python closes it too late
        self.source._delivered._stop_search()
        self.host.lose(self.source._directory.watch)

    def put(self, name: str, body: bytes) -> None:
        (self.out.parent / "part").write_bytes(body)
        (self.out.parent / "part").rename(self.out / name)

    def expect(self, *bodies: bytes) -> None:
        """Assert that all of these came by now, in any order, and no others."""
        self.host.run_until(lambda: len(self.received) >= len(bodies), f"{len(bodies)} messages arrive")
        self.host.settle()
        assert sorted(self.host.bodies()) == sorted(bodies)

    def said(self, part: str) -> int:
        return sum(part in text for text in self.host.said)


Make = Callable[..., Life]


@pytest.fixture
def make_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Yield a maker of sources."""
    yield from lives(Life, tmp_path, monkeypatch)
