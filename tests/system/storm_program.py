"""The container's programs in a storm (storm.py): one produces numbered messages, one consumes and audits them.

    storm_program.py produce KIND PLACE COUNTERS CONSUMER SEED LONGEST PAUSE
    storm_program.py consume KIND PLACE COUNTERS STREAMS

COUNTERS is a file that each keeps up to date. The producer is never far ahead of CONSUMER, the counters of the program
that gets its messages, and rests PAUSE microseconds after each. SIGTERM ends them: the producer at once, the consumer
when nothing is left. Neither is ever killed. A message says which one it is, what type it was sent with, and the
checksum of all that: "SEQ TYPE CRC32 FILLER", of random length. STREAMS is 1 if messages arrive in the order in
which they were sent. Where a POSIX queue puts others first by priority, it is the number of priorities: then the order
of the messages of each must be kept.
"""

from __future__ import annotations

import mmap
import random
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.system.storm_kinds import KINDS, Got, Kind, Stop

CELLS = ("count", "bytes", "repeated", "out_of_order", "corrupt", "wrong_type", "missing", "highest")
_AHEAD = 3000  # messages under way before the producer waits: more than the window has


class Counters:
    """Counts of a program, in a mapped file; others see them while it runs."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(8 * len(CELLS))
            self._map = mmap.mmap(file.fileno(), 8 * len(CELLS))
        self._cells = memoryview(self._map).cast("Q")

    def __getitem__(self, name: str) -> int:
        return self._cells[CELLS.index(name)]

    def set(self, **values: int) -> None:
        """Set them, one store each."""
        for name, value in values.items():
            self._cells[CELLS.index(name)] = value

    def close(self) -> None:
        """Unmap."""
        self._cells.release()
        self._map.close()


def make(seq: int, mtype: int, filler: bytes) -> bytes:
    """Return a message."""
    head = b"%d %d " % (seq, mtype)
    return b"%s%08x %s" % (head, zlib.crc32(filler, zlib.crc32(head)), filler)


def parse(body: bytes) -> tuple[int, int] | None:
    """Return (seq, type) of a message; None if it is damaged."""
    try:
        seq, mtype, check, filler = body.split(b" ", 3)
        head = b"%s %s " % (seq, mtype)
        if int(check, 16) != zlib.crc32(filler, zlib.crc32(head)):
            return None
        return int(seq), int(mtype)
    except ValueError:
        return None


class Audit:
    """Looks at each message that arrives: the numbers must be 1, 2, 3 and so on, or so in each of several streams."""

    def __init__(self, streams: int = 1) -> None:
        self.count = self.bytes = self.repeated = self.out_of_order = self.corrupt = self.wrong_type = 0
        self.highest = 0
        self._streams = streams
        self._highest = [stream - streams if stream else 0 for stream in range(streams)]
        self._missing: set[int] = set()

    @property
    def missing(self) -> int:
        """Return the messages that were passed over and have not come since."""
        return len(self._missing)

    def see(self, kind: Kind, got: Got) -> None:
        """Check the next message."""
        parsed = parse(got.body)
        if parsed is None:
            self.corrupt += 1
            return
        seq, sent = parsed
        if got.type != kind.expected_type(sent):
            self.wrong_type += 1
        stream = seq % self._streams
        if seq > self._highest[stream]:
            self._missing.update(range(self._highest[stream] + self._streams, seq, self._streams))
            self._highest[stream] = seq
            self.highest = max(self.highest, seq)
        elif seq in self._missing:
            self._missing.discard(seq)
            self.out_of_order += 1
        else:
            self.repeated += 1
            return
        self.count += 1
        self.bytes += len(got.body)

    def show(self, counters: Counters) -> None:
        """Let it be seen from outside."""
        counters.set(**{name: getattr(self, name) for name in CELLS})


def fillers(seed: int, longest: int) -> Iterator[bytes]:
    """Yield random bytes without newlines: mostly few, seldom many, up to about `longest`."""
    chance = random.Random(seed)
    pool = bytes(byte for byte in chance.randbytes(longest) if byte not in b"\n\0") * 2
    while True:
        length = min(int(chance.paretovariate(0.9) * 40), longest - 64)
        start = chance.randrange(longest // 2)
        yield pool[start : start + length]


def produce(kind: Kind, stop: Stop, counters: Counters, consumer: Counters, numbers: tuple[int, int, int]) -> None:
    """Produce until the stop; `numbers` are SEED, LONGEST and PAUSE."""
    size = 0
    *shape, pause = numbers
    for seq, filler in enumerate(fillers(*shape), 1):
        while seq - consumer["count"] > _AHEAD and not stop.requested:
            time.sleep(0.001)  # polls
        mtype = kind.sent_type(seq)
        body = make(seq, mtype, filler)
        if stop.requested or not kind.put(seq, mtype, body):
            return
        size += len(body)
        counters.set(count=seq, bytes=size)
        if pause:
            time.sleep(pause / 1e6)  # the pace of the program


def consume(kind: Kind, stop: Stop, counters: Counters, streams: int) -> None:
    """Consume until the stop, and until nothing is left."""
    audit = Audit(streams)
    while True:
        last = stop.requested
        messages = kind.get()
        for message in messages:
            audit.see(kind, message)
        audit.show(counters)
        if last and not messages:
            return


def main() -> None:
    """Run the command."""
    role, kind_name, place, path, *rest = sys.argv[1:]
    stop = Stop()
    kind = KINDS[kind_name](place, stop)
    counters = Counters(Path(path))
    if role == "produce":
        seed, longest, pause = map(int, rest[1:])
        produce(kind, stop, counters, Counters(Path(rest[0])), (seed, longest, pause))
    else:
        consume(kind, stop, counters, int(rest[0]))
    stop.close()


if __name__ == "__main__":
    main()
