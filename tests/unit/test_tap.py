"""The ring of copies for `nsbridgectl tap` (agents/tap.py): what a reader gets, and what it counts as missed."""

from __future__ import annotations

import random

import pytest

from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.agents.tap import BURST, BYTE_RATE, KEPT, RATE, SIZE, Tapped, TapReader, TapWriter
from nsbridge.agents.wire import Run

SECOND = 10**9
MOST = (1 << 64) - 1


class Scene:
    """A writer, and readers that come and go; the clock is the test's."""

    def __init__(self) -> None:
        self.page = Scoreboard()
        self.writer = TapWriter(self.page.tap)
        self.time = 1000 * SECOND
        self.seq = 0

    def put(self, *bodies: bytes, after: float = 1.0) -> None:
        """Hand over messages as one run, that many seconds after the last."""
        self.time += int(after * SECOND)
        self.writer.put(Run(7, self.seq + 1, 3, bodies), self.time)
        self.seq += len(bodies)

    def reader(self) -> TapReader:
        return TapReader(self.page.tap)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def shown(reader: TapReader) -> list[int | tuple[int, bytes]]:
    """Return what a reader yields: seqs and bodies, and the numbers of messages that were missed."""
    return [found if isinstance(found, int) else (found.seq, found.body) for found in reader.read()]


def test_messages_come_whole_and_in_order(scene: Scene) -> None:
    reader = scene.reader()
    scene.put(b"one", b"")
    scene.put(b"\x00" * 5)
    first, *_ = found = list(reader.read())
    assert isinstance(first, Tapped)
    assert first[1:] == (7, 1, 3, 3, b"one")
    assert [message.body for message in found if isinstance(message, Tapped)] == [b"one", b"", b"\x00" * 5]
    assert shown(reader) == []


def test_a_reader_begins_with_what_comes_next(scene: Scene) -> None:
    scene.put(b"before")
    reader, other = scene.reader(), scene.reader()
    scene.put(b"after")
    assert shown(reader) == shown(other) == [(2, b"after")]


def test_a_long_message_is_cut(scene: Scene) -> None:
    reader = scene.reader()
    scene.put(bytes(KEPT + 1))
    (found,) = reader.read()
    assert isinstance(found, Tapped)
    assert (found.size, found.body) == (KEPT + 1, bytes(KEPT))


def test_more_than_the_rate_is_counted_and_not_copied(scene: Scene) -> None:
    reader = scene.reader()
    burst = int(RATE * BURST)
    scene.put(*[b"x"] * (burst + 50))
    assert shown(reader) == [*((seq, b"x") for seq in range(1, burst + 1)), 50]
    scene.put(b"y")
    assert shown(reader) == [(burst + 51, b"y")]


def test_bytes_are_limited_too(scene: Scene) -> None:
    reader = scene.reader()
    scene.put(*[bytes(KEPT)] * 50)
    found = shown(reader)
    copied = len(found) - 1
    assert copied * KEPT <= BYTE_RATE * BURST + KEPT
    assert found[-1] == 50 - copied


def test_a_reader_that_is_slow_counts_what_it_missed(scene: Scene) -> None:
    """The ring goes round many times; nothing that was overwritten is shown."""
    reader = scene.reader()
    for _ in range(100):
        scene.put(random.randbytes(KEPT))
    assert shown(reader) == [100]
    scene.put(b"next")
    assert shown(reader) == [(101, b"next")]


def test_the_ring_goes_round(scene: Scene) -> None:
    """Records of all lengths, over the end of the ring."""
    reader, chance = scene.reader(), random.Random(5)
    for number in range(1, 2000):
        body = chance.randbytes(chance.randrange(3000))
        scene.put(body)
        assert shown(reader) == [(number, body)]


def test_a_reader_that_was_overtaken_shows_nothing(scene: Scene) -> None:
    """The agent writes on while the reader is between copying and looking again."""
    scene.put(b"first")
    memory = scene.page.tap

    class Overtaken(TapReader):
        def _copy(self, at: int, size: int) -> bytes:
            data = super()._copy(at, size)
            for _ in range(SIZE // KEPT):
                scene.put(bytes(KEPT))
            return data

    reader = Overtaken(memory)
    scene.put(b"second")
    found = shown(reader)
    assert found == [1]
    assert sum(found if isinstance(found, int) else 1 for found in shown(reader)) == SIZE // KEPT


def test_the_next_agent_continues(scene: Scene) -> None:
    reader = scene.reader()
    scene.put(b"one")
    scene.writer = TapWriter(scene.page.tap)
    scene.put(b"two")
    assert shown(reader) == [(1, b"one"), (2, b"two")]


def test_wiped_copies_are_gone(scene: Scene) -> None:
    reader = scene.reader()
    scene.put(b"secret" * 100)
    assert shown(reader)
    scene.page.wipe_tap()
    assert not any(scene.page.tap)
    reader = scene.reader()
    scene.put(b"next")
    assert shown(reader) == [(2, b"next")]


@pytest.mark.parametrize("seed", range(50))
def test_whatever_an_agent_writes_a_reader_ends(seed: int) -> None:
    """Random memory, with likely values in the head and in the records."""
    chance = random.Random(seed)
    memory = memoryview(bytearray(chance.randbytes(1000) + bytes(SIZE - 1000)))
    reader = TapReader(memory)
    head = memory[:16].cast("Q")
    for _ in range(5):
        start = 64 + chance.randrange(2000)
        memory[start : start + 48] = chance.randbytes(48)
        for cell in range(2):
            head[cell] = chance.choice([0, 1, head[cell] + chance.randrange(1000), SIZE, 1 << 63, MOST]) & MOST
        found = list(reader.read())
        assert len(found) <= SIZE
        assert all(message >= 1 if isinstance(message, int) else len(message.body) <= KEPT for message in found)
