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
import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Protocol

import sysv_ipc

from tests.posix_queue import PosixQueue

CELLS = ("count", "bytes", "repeated", "out_of_order", "corrupt", "wrong_type", "missing", "highest")
_AHEAD = 3000  # messages under way before the producer waits: more than the window has
_ROTATE = 5000  # messages of a log
TYPES = 5  # of messages, in a queue


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


class Got(NamedTuple):
    """A message as a consumer got it."""

    type: int
    body: bytes


class Kind(Protocol):
    """An endpoint as the container's own program uses it."""

    def put(self, seq: int, mtype: int, body: bytes) -> bool:
        """Leave a message for nsbridge; False if stopped before."""
        ...

    def get(self) -> list[Got]:
        """Return what has come, waiting a moment for it; empty if nothing has."""
        ...

    def sent_type(self, seq: int) -> int:
        """Return the type that this message is sent with; 0 where messages have none."""
        ...

    def expected_type(self, sent: int) -> int:
        """Return the type that a message must arrive with."""
        ...


class Stop:
    """SIGTERM has come. A timer interrupts whatever waits, so that it is seen."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.signal(signal.SIGTERM, self._request)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)

    def _request(self, *_: object) -> None:
        self.requested = True

    def close(self) -> None:
        """Stop the timer, which would kill an interpreter that is ending."""
        signal.setitimer(signal.ITIMER_REAL, 0)


class Spool:
    """A directory of files."""

    toml = 'spool = { out = "/srv/out", in = "/srv/in" }'
    out, in_ = "srv/out", "srv/in"

    def __init__(self, place: str, stop: Stop) -> None:
        self._directory = Path(place)
        self._directory.mkdir(exist_ok=True)

    def put(self, seq: int, mtype: int, body: bytes) -> bool:
        """Put a file there by rename."""
        hidden = self._directory / ".next"
        hidden.write_bytes(body)
        hidden.rename(self._directory / f"{seq:012d}")
        return True

    def get(self) -> list[Got]:
        """Return all files by name, then delete them.

        A listing may miss a file that came before another one which it has; a second one, made after, has both.
        """
        last = max(self._names(), default="")
        names = sorted(name for name in self._names() if name <= last)
        messages = []
        for name in names:
            file = self._directory / name
            messages.append(Got(int(name.rpartition(".")[2]), file.read_bytes()))
            file.unlink()
        if not messages:
            time.sleep(0.002)  # polls
        return messages

    def sent_type(self, seq: int) -> int:
        """Return 0: files have no type."""
        return 0

    def expected_type(self, sent: int) -> int:
        """Return the type in the suffix."""
        return sent

    def _names(self) -> list[str]:
        return [name for name in os.listdir(self._directory) if not name.startswith(".")]


class Queue:
    """A SysV queue; the program runs in the container's ipc namespace."""

    toml = "queue = { in = { key = 0x51 }, out = { key = 0x52 }, create = true }"
    out, in_ = "0x52", "0x51"

    def __init__(self, place: str, stop: Stop) -> None:
        self._queue = sysv_ipc.MessageQueue(int(place, 0), sysv_ipc.IPC_CREAT, 0o666, 1 << 16)
        self._stop = stop

    def put(self, seq: int, mtype: int, body: bytes) -> bool:
        """Put a message; wait while the queue is full."""
        while not self._stop.requested:
            try:
                self._queue.send(body, True, mtype)
            except sysv_ipc.Error as error:
                if type(error) is not sysv_ipc.Error:
                    raise  # the plain class is EINTR
            else:
                return True
        return False

    def get(self) -> list[Got]:
        """Return the first message, and what is there besides it."""
        messages: list[Got] = []
        try:
            while len(messages) < 100:
                body, mtype = self._queue.receive(not messages, 0)
                messages.append(Got(mtype, body))
        except sysv_ipc.BusyError:
            pass
        except sysv_ipc.Error as error:
            if type(error) is not sysv_ipc.Error:
                raise
        return messages

    def sent_type(self, seq: int) -> int:
        """Return the types in turn."""
        return 1 + seq % TYPES

    def expected_type(self, sent: int) -> int:
        """Return the type it came with; 1 if it came with none."""
        return sent or 1


class Log:
    """A file that is only appended to, a line for each message."""

    toml = 'log = { out = "/srv/out.log", in = "/srv/in.log" }'
    out, in_ = "srv/out.log", "srv/in.log"

    def __init__(self, place: str, stop: Stop) -> None:
        self._path = Path(place)
        self._file = self._open()
        self._line = b""  # what has come of the next one

    def put(self, seq: int, mtype: int, body: bytes) -> bool:
        """Append a line, with rotation by rename."""
        if seq % _ROTATE == 0:
            self.close()
            self._path.rename(f"{self._path}.{seq}")
            self._file = self._open()
        self._file.write(body + b"\n")
        return True

    def get(self) -> list[Got]:
        """Return the lines that are complete."""
        data = self._file.read(1 << 20)
        if not data:
            time.sleep(0.002)  # polls
        *lines, self._line = (self._line + data).split(b"\n")
        return [Got(0, line) for line in lines]

    def sent_type(self, seq: int) -> int:
        """Return 0: lines have no type."""
        return 0

    def expected_type(self, sent: int) -> int:
        """Return the type of a message whose own is not kept."""
        return 0

    def close(self) -> None:
        """Do nothing more."""
        self._file.close()

    def _open(self) -> FileIO:
        return FileIO(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o660), "r+")


class Mqueue:
    """A POSIX queue; the program runs in the container's ipc namespace."""

    toml = 'mqueue = { in = { name = "/storm-in" }, out = { name = "/storm-out" } }'
    out, in_ = "/storm-out", "/storm-in"

    def __init__(self, place: str, stop: Stop) -> None:
        self._queue = PosixQueue(place)
        self._stop = stop

    def put(self, seq: int, mtype: int, body: bytes) -> bool:
        """Put a message; wait while the queue is full."""
        while not self._stop.requested:
            with suppress(InterruptedError):
                self._queue.send(body, mtype)
                return True
        return False

    def get(self) -> list[Got]:
        """Return the next message."""
        try:
            body, priority = self._queue.receive()
        except InterruptedError:
            return []
        return [Got(priority, body)]

    def sent_type(self, seq: int) -> int:
        """Return the priorities in turn."""
        return seq % TYPES

    def expected_type(self, sent: int) -> int:
        """Return the type or priority it came with; 0 if it came with none."""
        return sent


KINDS: dict[str, type[Spool | Queue | Log | Mqueue]] = {"spool": Spool, "queue": Queue, "log": Log, "mqueue": Mqueue}


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
