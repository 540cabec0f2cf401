"""Reads what nats-servers have on disk: the ids of the messages of a stream, and how servers of a cluster differ.

A record of a block (server/filestore.go): length, whose top bit shows headers (4 bytes), sequence (8), time (8), length
of the subject (2), subject; with headers their length (4) and they; the body; a checksum (8). All little endian.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

_HEAD = struct.Struct("<IQQH")
_HAS_HEADERS = 1 << 31
_IS_NONE = 3 << 62  # of a sequence: an erased message, or the record of a deletion
_ID = re.compile(rb"Nats-Msg-Id: *(\S+)")


def ids(server: Path, stream: str) -> dict[int, str]:
    """Return the id of each message that a server's directory has, by its sequence."""
    found: dict[int, str] = {}
    for block in sorted(
        server.glob(f"store/jetstream/$G/streams/{stream}/msgs/*.blk"), key=lambda path: int(path.stem)
    ):
        found.update(_records(block.read_bytes()))
    return found


def _records(block: bytes) -> Iterator[tuple[int, str]]:
    at = 0
    while at + _HEAD.size <= len(block):
        length, sequence, _time, subject = _HEAD.unpack_from(block, at)
        end = at + (length & ~_HAS_HEADERS)
        if end <= at or end > len(block):
            return
        if not sequence & _IS_NONE:
            match = _ID.search(block, at + _HEAD.size + subject, end) if length & _HAS_HEADERS else None
            yield sequence, match[1].decode("ascii", "replace") if match else ""
        at = end


def runs(sequences: Sequence[int]) -> str:
    """Return sorted numbers in short: 3-7, 9."""
    parts = []
    for _, group in groupby(enumerate(sequences), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in group]
        parts.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
    return ", ".join(parts)


def differences(directory: Path, stream: str) -> list[str]:
    """Return a line about each server: how many messages it has, what it lacks and what differs."""
    stores: Mapping[str, dict[int, str]] = {path.name: ids(path, stream) for path in sorted(directory.glob("n*"))}
    places: dict[str, set[int]] = {}
    for store in stores.values():
        for sequence, text in store.items():
            places.setdefault(text, set()).add(sequence)
    lines = []
    for name, store in stores.items():
        has = set(store.values())
        lacks = sorted(min(where) for text, where in places.items() if text not in has)
        twice = len(store) - len(has)
        line = f"{stream} {name}: {len(store)} messages up to {max(store, default=0)}"
        line += f", lacks {len(lacks)}: {runs(lacks)[:200]}" if lacks else ""
        lines.append(line + (f", {twice} twice" if twice else ""))
    moved = sum(len(where) > 1 for where in places.values())
    return [*lines, f"{stream}: {len(places)} ids, {moved} at different sequences"]


if __name__ == "__main__":
    for one in sys.argv[2:] or ("AB", "BA"):
        print("\n".join(differences(Path(sys.argv[1]), one)))
