"""Journals that a compromised agent has left, for the fuzzer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nsbridge.agents import journalreader, wire
from nsbridge.agents.journal import sinkjournal
from nsbridge.agents.journal.journalfile import CELLS, PAGE, VALUE, _pack_header, parse_header, seal
from nsbridge.agents.journal.opensource import first_kept, open_source, records
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.agents.statefiles import journal_path
from nsbridge.agents.wire import Message
from nsbridge.config.errors import NsbridgeError


class JournalTarget:
    """The successor of a compromised agent: what it finds in its journals is used, or moved aside and reported."""

    def __init__(self, directory: Path, chance: random.Random, numbers: Sequence[int]) -> None:
        self._chance = chance
        self._numbers = numbers
        self._page = Scoreboard()
        self._state_dir = str(directory)
        self._in, self._out = (journal_path(self._state_dir, "hostile:one", side) for side in ("in", "out"))
        self._in.parent.mkdir(parents=True)
        sink = sinkjournal.open_sink(str(self._in))
        sink.adopt(5, 1)
        sink.close()
        source = self._source(self._out)
        for body in (b"", b"one", b"x" * 100):
            source.append(Message(1, body))
        source.close()
        self._seeds = {path: path.read_bytes() for path in (self._in, self._out)}
        self._headers = {path: parse_header(data) for path, data in self._seeds.items()}

    def _source(self, path: Path) -> SourceJournal:
        return open_source(str(path), 10, 8192)

    def run(self) -> None:
        """Forge some numbers of a journal, and use it: many of them sealed, and the header's checksum right."""
        chance, path = self._chance, self._chance.choice((self._in, self._out))
        data = bytearray(self._seeds[path])
        places = (*range(CELLS.start, CELLS.stop, 8), *(range(PAGE, PAGE + 400, 8) if path == self._out else ()))
        for _ in range(chance.randrange(1, 5)):
            number = chance.choice((*self._numbers, PAGE + 80, PAGE + 96))
            number = seal(number & VALUE) if chance.randrange(2) else number
            data[(at := chance.choice(places)) : at + 8] = number.to_bytes(8, "little")
        packed = _pack_header(self._headers[path]._replace(epoch=chance.choice((5, 5, 5, *self._numbers))))
        data[: len(packed)] = packed
        path.write_bytes(data)
        with suppress(NsbridgeError):
            journalreader.read(str(path), None)
        journalreader.recall(self._page, self._state_dir, "hostile:one")
        self._use_source() if path == self._out else self._use_sink()

    def _use_sink(self) -> None:
        sink = sinkjournal.open_sink(str(self._in))
        for cell in (sinkjournal.BYTES, sinkjournal.REPEATS, sinkjournal.DEAD, sinkjournal.IN_DOUBT):
            sink.cells[cell] += 1
        sink.show(self._page.cells)
        sink.hand(min(sink.handed + 1, wire.MAX_SEQ))  # no message beyond it comes
        sink.adopt(7, 3)
        sink.show(self._page.cells)
        sink.close()

    def _use_source(self) -> None:
        source = self._source(self._out)
        seq = source.confirmed + 1
        with suppress(OSError):  # it is full
            source.append(Message(1, b"more"))
        while seq <= source.taken:
            seq = source.run(seq).last + 1
        records(source, first_kept(source))
        source.confirm(source.taken)
        source.close()
