"""Damage of journals, of every kind: what is opened has the same content, or was moved aside and reported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsbridge.agents import linux
from nsbridge.agents.journal import opensource
from nsbridge.agents.journal.journalfile import PAGE
from nsbridge.agents.journal.sinkjournal import SinkJournal
from tests.journals import ENTRIES, ONE, THREE, aside, content, sink, source, used, was_moved_aside

HEADER = 52  # bytes: the fields and their checksum
CELLS_AT, CELLS = 128, 256

LENGTHS = [0, 1, 8, 47, 48, 51, 52, 127, 128, 384, PAGE - 1, PAGE, PAGE + 1, PAGE + 8 * ENTRIES - 1, PAGE + 8 * ENTRIES]


@pytest.mark.parametrize("length", [*LENGTHS, PAGE + 8 * ENTRIES + 1, -1, +1, +PAGE])
def test_a_journal_of_a_wrong_length_is_moved_aside(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a"
    data = used(path)
    wrong = (data + bytes(length)) if length in (1, PAGE) else data[:length]
    for damaged in {wrong, data[:length]} - {data}:
        for old in aside(path):
            old.unlink()
        path.write_bytes(damaged)
        said: list[str] = []
        opened = source(path, said=said)
        assert content(opened)[1:] == (0, [])
        was_moved_aside(path, damaged, said)
        opened.append(ONE)
        opened.close()
        again = source(path)
        assert content(again)[2] == [ONE]
        again.close()


@pytest.mark.parametrize("length", [length for length in LENGTHS if length < PAGE])
def test_a_sink_journal_of_a_wrong_length_is_moved_aside(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a"
    sink(path).close()
    damaged = path.read_bytes()[:length]
    path.write_bytes(damaged)
    said: list[str] = []
    opened = sink(path, said)
    assert (opened.epoch, opened.handed) == (0, 0)
    was_moved_aside(path, damaged, said)
    opened.close()


@pytest.mark.parametrize("at", range(HEADER))
def test_a_flipped_byte_of_the_header_is_found(tmp_path: Path, at: int) -> None:
    """The version too: a damaged journal must not be taken for a newer one, because no restart would fix that."""
    path = tmp_path / "a"
    data = used(path)
    for mask in (1, 0x80, 0xFF):
        damaged = _flipped(data, at, mask)
        path.write_bytes(damaged)
        said: list[str] = []
        opened = source(path, said=said)
        assert content(opened)[1:] == (0, [])
        was_moved_aside(path, damaged, said)
        opened.close()
        aside(path)[0].unlink()


def test_an_empty_or_foreign_file_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "a"
    handing = tmp_path / "b"
    sink(handing).close()
    for damaged in (b"", bytes(PAGE), b"#!/bin/sh\n" * 1000, handing.read_bytes()):
        path.write_bytes(damaged)
        said: list[str] = []
        source(path, said=said).close()
        was_moved_aside(path, damaged, said)
        aside(path)[0].unlink()


def test_each_damaged_journal_is_kept(tmp_path: Path) -> None:
    """Two within one second, by one process."""
    path = tmp_path / "a"
    for body in (b"first", b"second"):
        path.write_bytes(body)
        source(path, said=[]).close()
    assert {file.read_bytes() for file in aside(path)} == {b"first", b"second"}


def _flipped(data: bytes, at: int, mask: int) -> bytes:
    damaged = bytearray(data)
    damaged[at] ^= mask
    return bytes(damaged)


def _each_flip(path: Path, data: bytes, where: range, same: Callable[[], bool]) -> int:
    """Flip each byte in turn: what is opened is the same, or moved aside and reported. How often it was aside."""
    found = 0
    for at in where:
        for mask in (1, 0x10, 0xFF):
            damaged = _flipped(data, at, mask)
            path.write_bytes(damaged)
            if not same():
                (kept,) = aside(path)
                assert kept.read_bytes() == damaged, f"byte {at} ^ {mask:#x}: changed before it was moved aside"
                kept.unlink()
                found += 1
    return found


def test_no_flipped_byte_of_a_source_journal_goes_unseen(tmp_path: Path) -> None:
    """Neither in the cells nor in the index nor in the ring: the same content, or moved aside and reported."""
    path = tmp_path / "a"
    data = used(path)
    opened = source(path)
    released, before = opened.released, content(opened)
    opened.close()

    def same() -> bool:
        said: list[str] = []
        again = source(path, said=said)
        now, now_released = content(again), again.released
        again.close()
        if not said:
            assert (now, now_released) == (before, released)
        return not said

    assert _each_flip(path, data, range(HEADER, CELLS_AT + CELLS), same) >= 3 * 8 * 3
    assert _each_flip(path, data, range(PAGE, len(data)), same) >= 3 * (103 + 4 * 8)


def test_no_flipped_byte_of_a_landing_place_invents_a_message(tmp_path: Path) -> None:
    """The exception is the eight bytes of the type itself, which the kernel writes and nothing can vouch for."""
    path = tmp_path / "a"
    used(path)
    opened = source(path)
    place = opened.land([50])[0] - linux.address_of(memoryview(opened.cells.obj))
    before = content(opened)
    opened.close()
    data = path.read_bytes()
    assert data[place : place + 8] == bytes(8)

    def same() -> bool:
        said: list[str] = []
        again = source(path, said=said)
        now = content(again)
        again.close()
        assert said or now == before
        return not said

    everything = [*range(HEADER, CELLS_AT + CELLS), *range(PAGE, place), *range(place + 8, len(data))]
    for at in everything:
        _each_flip(path, data, range(at, at + 1), same)


def test_no_flipped_byte_of_a_sink_journal_goes_unseen(tmp_path: Path) -> None:
    """The number handed over must be right; counters and the like may differ."""
    path = tmp_path / "a"
    handing = sink(path)
    for epoch in (1 << 60, (1 << 60) + 5):
        handing.adopt(epoch, 3)
        handing.hand(10)
        handing.sent(11, 1)
        handing.intent = 12
    handing.close()
    data = path.read_bytes()

    def seen(it: SinkJournal) -> tuple[int, ...]:
        return it.epoch, it.handed, it.last_sender

    before = ((1 << 60) + 5, 11, 1)

    def same() -> bool:
        said: list[str] = []
        again = sink(path, said)
        now, intent = seen(again), again.intent
        again.close()
        is_aside = any("is damaged" in text for text in said)  # a counter that cannot be is only reported
        if not is_aside:
            assert now == before
            assert intent in (12, 0), "an intent that never was could make a lost message look handed over"
        return not is_aside

    assert _each_flip(path, data, range(HEADER, len(data)), same) >= 3 * 8 * 3


@given(st.binary(min_size=1, max_size=40), st.integers(0, 1 << 20), st.sampled_from(["source", "sink"]))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_causes_no_error_hang_or_huge_allocation(tmp_path: Path, garbage: bytes, at: int, kind: str) -> None:
    path = tmp_path / "a"
    path.unlink(missing_ok=True)
    if kind == "source":
        data = used(path)
    else:
        sink(path).close()
        data = path.read_bytes()
    at %= len(data)
    path.write_bytes(data[:at] + garbage + data[at + len(garbage) :])
    said: list[str] = []
    if kind == "source":
        opened = source(path, said=said)
        assert content(opened)[1] >= 0
        opened.append(ONE)
        opened.close()
    else:
        handing = sink(path, said)
        handing.adopt(5, 6)
        handing.close()
    assert path.stat().st_size <= len(data) + 40
    for file in aside(path):
        file.unlink()


def test_a_damaged_record_leaves_nothing_mapped_or_open(tmp_path: Path) -> None:
    """The descriptor holds the lock of the journal that was moved aside."""
    path = tmp_path / "a"
    data = used(path)
    path.write_bytes(data.replace(THREE.body, b"?" * 100))
    opened = source(path, said=[])
    after_damage = len(os.listdir("/proc/self/fd"))
    opened.close()
    opened = source(path)
    assert len(os.listdir("/proc/self/fd")) == after_damage
    opened.close()


def test_the_successor_of_a_damaged_journal_has_a_later_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of a spool's files begin with it, and their order is the messages': the clock may have gone back."""
    path = tmp_path / "a"
    data = used(path)
    opened = source(path)
    epoch = opened.epoch
    opened.close()
    monkeypatch.setattr(opensource, "new_epoch", lambda: epoch - 3600 * 10**9)
    for damaged in (data.replace(THREE.body, b"?" * 100), data[:-1]):
        path.write_bytes(damaged)
        again = source(path, said=[])
        assert again.epoch == epoch + 1
        again.close()
    path.write_bytes(data)
    resized = source(path, ENTRIES + 1)
    assert resized.epoch == epoch, "another window begins no new epoch"
    resized.close()
