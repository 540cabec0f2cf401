"""Logs under any sequence of writes, rotations, kills and confirmations: each message once, in order, on both sides."""

from __future__ import annotations

import os
import struct
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nsbridge.agents.endpoints.log.config import Framing, LogEndpoint
from nsbridge.agents.endpoints.log.sink import LogSink
from nsbridge.agents.endpoints.log.source import LogSource
from nsbridge.agents.wire import Message
from nsbridge.config.schema import InDoubt
from tests.fake_host import SinkHost, SourceHost
from tests.kills import killed_at

PARTS = ("endpoints/log/", "endpoints/directory.py", "agents/journal/sourcejournal.py", "agents/journal/store.py")
FILLER = st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"-"))


def framed(framing: Framing, body: bytes) -> bytes:
    return body + b"\n" if framing is Framing.LINE else struct.pack(">I", len(body)) + body


class LogSourceMachine(RuleBasedStateMachine):
    """A writer that rotates now and then, and a source that is killed now and then."""

    @initialize(framing=st.sampled_from(Framing), window=st.sampled_from((2, 5, 64)))
    def begin(self, framing: Framing, window: int) -> None:
        os.chdir("/")
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = Path(self.temporary.name)
        self.framing = framing
        self.window = window
        self.log = self.directory / "app.log"
        self.config = LogEndpoint(out=str(self.log), framing=framing, max_message=1000)
        self.received: list[Message] = []
        self.written: list[bytes] = []
        self.partial = b""  # what the writer has still to write of its last message
        self.rotations = self.given_back = 0
        self.clock = 0
        self.host: SourceHost | None = None
        self.start(True)
        self.writer = self.log.open("ab", buffering=0)
        self.put(b"")

    def start(self, confirms: bool) -> None:
        self.host = SourceHost(self.directory / "journal", self.received, self.window)
        self.host.confirms = confirms
        self.source = LogSource(self.host, self.host.tree, self.config, self.host.journal)
        self.host.source = self.source
        self.source.start()
        self.host.flush()

    def put(self, data: bytes) -> None:
        """Put a file; times of change are made to differ, however fast this is."""
        self.writer.write(data)
        self.clock += 1
        os.utime(self.writer.fileno(), (self.clock, self.clock))

    @rule(fillers=st.lists(FILLER, max_size=6))
    def write(self, fillers: list[bytes]) -> None:
        data, self.partial = self.partial, b""
        for filler in fillers:
            self.written.append(b"%d %b" % (len(self.written), filler))
            data += framed(self.framing, self.written[-1])
        self.put(data)

    @precondition(lambda self: not self.partial)
    @rule(filler=FILLER, cut=st.floats(0, 1))
    def write_a_part(self, filler: bytes, cut: float) -> None:
        self.written.append(b"%d %b" % (len(self.written), filler))
        data = framed(self.framing, self.written[-1])
        at = max(1, int(cut * len(data)))
        self.put(data[:at])
        self.partial = data[at:]

    @precondition(lambda self: not self.partial)
    @rule(reopens_at_once=st.booleans())
    def rotate(self, reopens_at_once: bool) -> None:
        self.rotations += 1
        self.log.rename(self.directory / f"app.log.{self.rotations}")
        new = self.log.open("ab", buffering=0)
        if not reopens_at_once:
            self.write([b"late"])
        self.writer.close()
        self.writer = new
        self.put(b"")

    @rule(turns=st.integers(1, 4))
    def run(self, turns: int) -> None:
        if self.host is not None:
            for _ in range(turns):
                self.host.loop.run_once(0)

    @rule(confirms=st.booleans())
    def confirm(self, confirms: bool) -> None:
        if self.host is not None:
            self.host.confirms = confirms
            if confirms:
                self.host.confirm()

    @rule()
    def give_a_dead_letter_back(self) -> None:
        """Take its number without the source."""
        if self.host is not None:
            self.given_back += self.host.give_back(b"given back")

    @rule()
    def kill(self) -> None:
        if self.host is not None:
            assert not [text for text in self.host.said if "lost" in text], self.host.said
            self.lose()

    @rule(line=st.integers(1, 400), fillers=st.lists(FILLER, min_size=1, max_size=3))
    def kill_while_it_works(self, line: int, fillers: list[bytes]) -> None:
        if self.host is not None:
            with killed_at(line, *PARTS):
                self.write(fillers)
                self.run(3)
            self.lose()

    @precondition(lambda self: self.host is None)
    @rule(confirms=st.booleans())
    def restart(self, confirms: bool) -> None:
        self.start(confirms)

    def lose(self) -> None:
        assert self.host is not None
        self.writer.close()
        self.host.lose(self.source._ear.watch)
        self.host = None
        self.writer = self.log.open("ab", buffering=0)

    @invariant()
    def what_came_is_what_was_written_in_order(self) -> None:
        if hasattr(self, "received"):
            bodies = self.bodies()
            assert bodies == self.written[: len(bodies)]

    def bodies(self) -> list[bytes]:
        """Return the messages that came of the log."""
        return [m.body for m in self.received if m.type >= 0 and m.body != b"given back"]

    def teardown(self) -> None:
        if not hasattr(self, "directory"):
            return
        self.put(self.partial)
        if self.host is None:
            self.start(True)
        host = self.host
        assert host is not None
        host.confirms = True
        host.confirm()
        count = len(self.written) + self.given_back
        host.run_until(lambda: len(host.bodies()) >= count, f"{len(self.written)} messages arrive")
        assert self.bodies() == self.written
        assert len(host.bodies()) == count
        self.writer.close()
        host.lose(self.source._ear.watch)
        self.temporary.cleanup()


class LogSinkMachine(RuleBasedStateMachine):
    """Messages that come in batches, a file that is renamed now and then, and a sink that is killed anywhere."""

    @initialize(framing=st.sampled_from(Framing), bodies=st.lists(FILLER, min_size=1, max_size=30))
    def begin(self, framing: Framing, bodies: list[bytes]) -> None:
        os.chdir("/")
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = Path(self.temporary.name)
        self.framing = framing
        self.log = self.directory / "app.log"
        self.config = LogEndpoint(in_=str(self.log), framing=framing)
        self.messages = [b"%d %b" % (number, body) for number, body in enumerate(bodies)]
        self.rotated: list[Path] = []
        self.start()

    def start(self, line: int = 0) -> None:
        self.host = SinkHost(self.directory / "journal", self.messages)
        self.sink = LogSink(self.host, self.host.tree, self.config, self.host.journal, InDoubt.RESEND)
        self.host.sink = self.sink
        with killed_at(line, *PARTS):
            self.sink.start()

    @rule(count=st.integers(1, 10))
    def offer(self, count: int) -> None:
        kept = [self.host.waiting.pop() for _ in range(max(0, len(self.host.waiting) - count))]
        try:
            self.host.offer()
            self.host.settle()
        finally:
            self.host.waiting.extend(reversed(kept))

    @rule(line=st.integers(1, 120), again=st.integers(0, 60), count=st.integers(1, 10), cut=st.integers(0, 30))
    def kill_while_it_works(self, line: int, again: int, count: int, cut: int) -> None:
        """Kill it at work and, if `again`, while it starts anew; a kill may cut a write short."""
        journal, before = self.host.journal, self.size()
        with killed_at(line, *PARTS):
            self.offer(count)
        if journal.handed == self.host.done and self.size() > before and self.is_noted(before):
            os.truncate(self.log, max(before, self.size() - cut))
        self.host.lose(self.sink._directory.watch)
        if again:
            self.start(again)
            self.host.lose(self.sink._directory.watch)
        self.start()

    def size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def is_noted(self, before: int) -> bool:
        """True if all that the file has beyond `before` is of one write whose end is not noted."""
        intent = self.sink._intents.read()
        return intent.last > self.host.journal.handed and intent.offset == before

    @rule()
    def rotate(self) -> None:
        if self.log.exists():
            self.rotated.append(self.directory / f"app.log.{len(self.rotated) + 1}")
            self.log.rename(self.rotated[-1])

    @rule()
    def kill_and_rotate(self) -> None:
        self.host.lose(self.sink._directory.watch)
        self.rotate()
        self.start()

    def teardown(self) -> None:
        if not hasattr(self, "host"):
            return
        self.host.offer()
        self.host.run_until(lambda: self.host.done == len(self.messages), "all is handed over")
        files = [*self.rotated, self.log]
        written = b"".join(path.read_bytes() for path in files if path.exists())
        assert written == b"".join(framed(self.framing, body) for body in self.messages)
        self.host.lose(self.sink._directory.watch)
        self.temporary.cleanup()


LogSourceMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
LogSinkMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestLogSource = LogSourceMachine.TestCase
TestLogSink = LogSinkMachine.TestCase
