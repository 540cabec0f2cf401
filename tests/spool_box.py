"""Runs a spool's sink under test in its directory, offers it messages, and kills it."""

from __future__ import annotations

from pathlib import Path

from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.sink import SpoolSink
from nsbridge.agents.wire import Run
from tests.fake_host import OfferedSinkHost

OLD = OfferedSinkHost.EPOCH


class Box:
    """A sink of a directory, until `kill`; `offer` is the other agent's next message; `more` configures keys."""

    def __init__(self, directory: Path, **more: object) -> None:
        self.path = directory / "in"
        self._config = SpoolEndpoint(in_=str(self.path), **more)  # type: ignore[arg-type]
        self._journal = directory / "a.in"
        self.start()

    def start(self) -> None:
        self.host = OfferedSinkHost(self._journal)
        self._made: SpoolSink | None = None
        self._made = SpoolSink(self.host, self.host.tree, self._config, self.host.journal)
        self._made.start()

    @property
    def sink(self) -> SpoolSink:
        assert self._made is not None
        return self._made

    def kill(self) -> None:
        self.host.lose(self._made._directory.watch if self._made else None)

    def offer(self, seq: int, body: bytes, epoch: int = OLD, name: bytes | None = None) -> int:
        return self.sink.put(Run(epoch, seq, 0, (body,), () if name is None else (name,)))

    def bodies(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.path.iterdir()) if path.is_file()]


def name_of(seq: int, epoch: int = OLD) -> str:
    return f"{epoch:016x}-{seq:020d}.0"


def hidden_name_of(seq: int) -> str:
    return f".{OLD:016x}-{seq:020d}.part"
