"""Directory `done` of delivered files: names that do not fit, or are taken there."""

from __future__ import annotations

import os

from tests.spool_life import Make


def test_names_of_255_bytes_are_moved_to_done_twice(make_spool: Make) -> None:
    """The number that makes the second one's name another is not beyond NAME_MAX (F12)."""
    life = make_spool(move=True)
    name = "ä" * 127 + "x"
    for body in (b"1", b"2", b"3"):
        life.put(name, body)
        life.host.run_until(lambda: not os.listdir(life.out), "it is moved")
    assert sorted(path.read_bytes() for path in life.done.iterdir()) == [b"1", b"2", b"3"]
    assert all(len(os.fsencode(path.name)) <= 255 for path in life.done.iterdir())
    assert all("\udcc3" not in path.name for path in life.done.iterdir()), "no character is cut in two"


def test_taken_names_in_done_block_with_a_reason(make_spool: Make) -> None:
    """Also the ones with the number: a journal that was begun anew counts from 1 again."""
    life = make_spool(move=True)
    life.put("name", b"1")
    life.host.run_until(lambda: not os.listdir(life.out), "it is moved")
    epoch = life.host.store.epoch
    for taken in ("name.2", f"name.{epoch:016x}-2"):
        (life.done / taken).write_bytes(b"foreign")
    life.put("name", b"2")
    life.host.run_until(lambda: "other files under every name for name" in life.host.reason, "it says why it waits")
    (life.done / "name.2").unlink()
    life.host.run_until(lambda: not os.listdir(life.out), "it is moved")
    assert (life.done / "name.2").read_bytes() == b"2"
