"""The last records are kept in order, in bounded memory, and no child has them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsbridge.supervisor.control.answer import MAX_QUEUED_STREAM
from nsbridge.supervisor.control.api import Api
from nsbridge.supervisor.log import ring
from nsbridge.supervisor.log.log import Entry
from nsbridge.supervisor.log.ring import Ring
from tests.child import in_child


@given(st.lists(st.integers(0, 400), max_size=200))
@settings(max_examples=50)
def test_last_records_are_kept_in_order_in_bounded_memory(lengths: list[int]) -> None:
    """The last records of any length are kept, without a gap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "_SIZE", 4096)
        patch.setattr(ring, "_LONGEST", 512)
        kept: Ring[Entry] = Ring(20, Entry)
        written = [Entry(number, "INFO", "r:a", "x" * length) for number, length in enumerate(lengths)]
        for entry in written:
            kept.add(entry)
        found = kept.recent()
    assert found == written[len(written) - len(found) :]
    assert len(found) >= min(len(written), 4096 // 512 - 1)
    assert len(found) <= 20


def test_record_that_is_far_too_long_is_not_kept() -> None:
    kept: Ring[Entry] = Ring(10, Entry)
    heard: list[Entry] = []
    kept.subscribe(heard.append)
    kept.add(Entry(1.5, "INFO", "", "x" * ring._SIZE))
    kept.add(Entry(1.5, "INFO", "r:a", "\udcff\n"))
    assert kept.recent() == [Entry(1.5, "INFO", "r:a", "\udcff\n")]
    assert len(heard) == 2


@pytest.mark.parametrize(
    "text", ["x" * 2000, "\\x1b" * 500, "\U0001f600" * 2000, "é" * 2000], ids=["x", "escapes", "emoji", "accents"]
)
def test_long_records_end_no_caller_s_connection(text: str) -> None:
    """A container chooses the length of its agent's lines; `tail -n 1000` has to fit the connection's queue."""
    kept: Ring[Entry] = Ring(1000, Entry)
    for number in range(1000):
        kept.add(Entry(number, "WARNING", "r:a", text))
    sent: list[bytes] = []
    answer: Any = SimpleNamespace(
        item=lambda value: sent.append(json.dumps(value).encode()), result=lambda _value: None
    )
    Api._stream(SimpleNamespace(), kept, {"count": 1000}, answer)  # type: ignore[arg-type]
    assert 100_000 < sum(map(len, sent)) < MAX_QUEUED_STREAM
    assert json.loads(sent[-1])["time"].startswith("1970-01-01T00:16:39"), "the last ones are sent"


def test_child_does_not_have_the_records() -> None:
    """An agent is a fork of the supervisor, and may be compromised."""
    kept: Ring[Entry] = Ring(1000, Entry)
    for number in range(1000):
        kept.add(Entry(1.0, "INFO", "other:route", f"mark{number:06}of-another-route"))

    piece = 16 << 20  # bytes; one area, such as the heap of a long test run, may be far larger

    def marks() -> int:
        found = set()
        lines = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
        with open("/proc/self/mem", "rb") as memory:
            for line in lines:
                area, rights, *_ = line.split()
                start, end = (int(number, 16) for number in area.split("-"))
                if not rights.startswith("rw") or "[v" in line:
                    continue
                for place in range(start, end, piece):
                    memory.seek(place)
                    try:
                        part = memory.read(min(piece + 100, end - place))
                    except OSError:
                        continue  # a mapped file that has become shorter
                    found |= {mark[:6] for mark in part.split(b"mark")[1:] if mark[6:9] == b"of-"}
        return len(found)

    assert marks() == 1000, "the search finds them where they are"
    assert in_child(marks) < 50, "but for what freed memory happens to hold of the last ones"
    assert len(kept.recent()) == 1000
