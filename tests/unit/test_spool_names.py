"""Names of a spool that wait, and their order; scans of very large directories."""

from __future__ import annotations

import os
from typing import Any

import pytest

from nsbridge.agents.endpoints.spool import names as spool_names
from nsbridge.agents.endpoints.spool.matching import message_names
from nsbridge.agents.endpoints.spool.names import CLOSED, Calls, SpoolNames
from nsbridge.agents.loop import Loop
from nsbridge.config.patterns import TakenNames
from tests.spool_life import Make

MANY = 20_000


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.tmp", b"a.tmp", True),
        ("*.tmp", b".tmp", True),
        ("*.tmp", b"a.tmp.x", False),
        ("*.tmp", b"a.TMP", False),
        ("*.tmp", b"a\n.tmp", True),
        ("*.tmp", b"\xff.tmp", True),
        ("a?c", b"abc", True),
        ("a?c", b"ac", False),
        ("[0-9]*", b"1x", True),
        ("[!0-9]*", b"1x", False),
        ("ä*", "äx".encode(), True),
        ("*", b"anything", True),
        ("a.c", b"abc", False),
        ("#*#", b"#x#", True),
        ("*a*b", b"xaxb", True),
    ],
)
def test_patterns_match_as_a_shell_s(pattern: str, name: bytes, matches: bool) -> None:
    """Patterns match bytes in any encoding; a hidden name is never a message."""
    for patterns in ([pattern], [pattern, "*.other"], [pattern, "o?her"]):
        assert message_names(TakenNames(ignore=patterns))(name) is (not matches)
        assert message_names(TakenNames(match=patterns))(name) is (matches and name[:1] != b".")


def test_without_patterns_only_hidden_names_are_left_out() -> None:
    is_message = message_names(TakenNames())
    assert [is_message(name) for name in (b"a.tmp", b"a~", b".a")] == [True, True, False]


@pytest.mark.parametrize("kind", ["FIFO", "file"])
def test_scan_of_a_huge_directory_leaves_the_loop_its_turns(
    make_spool: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The agent's heartbeat is in the loop. What is no file is counted; a file behind them all is taken."""
    life = make_spool()
    life.kill()
    for number in range(MANY):
        if kind == "FIFO":
            os.mkfifo(life.out / f"{number:06d}")
        else:
            os.close(os.open(life.out / f"{number:06d}", os.O_CREAT | os.O_WRONLY))
    (life.out / "last").write_bytes(b"last")
    sift, slices = SpoolNames._sift, [0]

    def counted(names: SpoolNames, scan: Any, entries: Any) -> None:
        slices[-1] += 1
        sift(names, scan, entries)

    monkeypatch.setattr(SpoolNames, "_sift", counted)
    monkeypatch.setattr(spool_names, "_SLICE", 0.0)
    life.start()
    expected = 1 if kind == "FIFO" else MANY + 1
    while len(life.received) < expected:
        slices.append(0)
        life.host.loop.run_once(1)
    assert life.host.bodies()[-1] == b"last"
    assert max(slices) == 1, "more than one part of the listing in one turn of the loop"
    assert sum(slices) >= MANY // spool_names._ENTRIES
    if kind == "FIFO":
        life.host.run_until(lambda: life.host.refused_files == MANY, "all are counted")
    assert len(life.source._names._how) <= 2 * spool_names._MOST


def test_what_arrives_during_a_scan_comes_after_it(make_spool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which it came, which is not that of the names."""
    monkeypatch.setattr(spool_names, "_SLICE", 0.0)
    life = make_spool()
    life.kill()
    for number in range(1000):
        life.put(f"m{number:04d}", b"%d" % number)
    life.start()
    assert not life.received, "the scan is not done"
    for name in ("b", "a"):
        life.put(name, name.encode())
    life.host.run_until(lambda: len(life.received) == 1002, "all arrive")
    assert life.host.bodies() == [b"%d" % number for number in range(1000)] + [b"b", b"a"]


def test_unconfirmed_files_are_sent_before_the_scan(make_spool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart is quick, however many files wait behind them."""
    life = make_spool(window=4)
    life.host.confirms = False
    for number in range(600):
        life.put(f"{number:04d}", b"%d" % number)
    life.expect(*[b"%d" % number for number in range(4)])
    life.kill()
    del life.received[:]  # the other agent has not got them
    monkeypatch.setattr(spool_names, "_SLICE", 0.0)
    life.start()
    assert life.host.bodies() == [b"0", b"1", b"2", b"3"]


def test_refused_name_is_retried_with_backoff(make_spool: Make) -> None:
    """Further events do not add clocks: many events for one name cause one retry."""
    life = make_spool()
    with (life.out / "name").open("wb") as _writer:
        for _ in range(50):
            (life.out / "name").touch()
            life.host.settle()
        due = life.host.loop.now() + 1.0
        life.host.run_until(lambda: life.host.loop.now() > due, "a second has passed")
        assert len(life.source._names._aside._due) <= 2


def test_name_that_was_forgotten_and_came_again_waits_once() -> None:
    """Taken twice it would be two messages: a storm found 2,000 of them."""
    loop = Loop()
    calls = Calls(lambda: None, lambda _name: None, lambda: None, lambda: True)
    names = SpoolNames(loop, message_names(TakenNames()), calls)
    for name in (b"a", b"b"):
        names.event(name, CLOSED)
    names.forget(b"b")
    names.event(b"b", CLOSED)
    for name in (b"a", b"b"):
        assert names.first() == name
        names.take(name)
    assert names.first() is None
    loop.close()
