"""Programs that write into a spool, and the resulting messages: the rows of the table in docs/delivery.md.

The kind of all these faults: a file is taken too early, too late, twice or never, because an event was believed to say
more than it does. So each row checks that every message comes once and whole, that the program's own calls succeed,
and that the next message comes too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from nsbridge.agents.endpoints import files
from tests.spool_life import Life, Make
from tests.spool_ways import FIRST, SECOND, WRITES, Write, link_tmpfile


@pytest.mark.parametrize("way", WRITES, ids=lambda way: way.__name__)
def test_way_of_writing_gives_one_message(make_spool: Make, way: Write) -> None:
    """In one go, so that the agent sees all of it at once, and then again."""
    life = make_spool()
    for count in (1, 2):
        way(life.out, life.out.parent)
        life.expect(*[FIRST] * count)
        life.host.run_until(lambda: not os.listdir(life.out), "the file is removed")


@pytest.mark.parametrize("way", WRITES, ids=lambda way: way.__name__)
def test_way_of_writing_gives_one_message_step_by_step(make_spool: Make, way: Write) -> None:
    """The agent looks after every event, which it does when it is fast and the program slow."""
    life = make_spool()
    stepwise(life, lambda: way(life.out, life.out.parent))
    life.expect(FIRST)
    life.host.run_until(lambda: not os.listdir(life.out), "the file is removed")


def stepwise(life: Life, program: Callable[[], None]) -> None:
    """Let the agent serve its events before each call that the program makes of these."""
    calls = {name: getattr(os, name) for name in ("open", "link", "rename", "unlink", "close", "write", "truncate")}
    inside = False

    def stepping(name: str) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal inside
            if not inside:
                inside = True
                life.host.settle()
                inside = False
            return calls[name](*arguments, **options)

        return call

    patch = pytest.MonkeyPatch()
    for name in calls:
        patch.setattr(os, name, stepping(name))
    try:
        program()
    finally:
        patch.undo()


def settled(life: Life, seconds: float) -> None:
    """Serve events for so long, for what must not happen."""
    until = life.host.loop.now() + seconds
    life.host.run_until(lambda: life.host.loop.now() >= until, "time passes")


def test_renames_of_temporary_files_never_fail(make_spool: Make) -> None:
    """20 of them, with a pause in which the agent could take and delete the unfinished name (F3)."""
    life = make_spool()
    for number in range(20):
        (life.out / f"m{number}.tmp").write_bytes(b"%d" % number)
        life.host.settle()
        (life.out / f"m{number}.tmp").rename(life.out / f"m{number}")
        life.host.settle()
    life.expect(*[b"%d" % number for number in range(20)])


@pytest.mark.parametrize("name", ["a.part", "a.partial", "a.filepart", "a.crdownload", "a.swp", "a~", "a.temp"])
def test_names_of_unfinished_files_are_not_taken(make_spool: Make, name: str) -> None:
    """Neither by an event nor by a scan."""
    life = make_spool()
    (life.out / name).write_bytes(b"unfinished")
    life.put("1", FIRST)
    life.expect(FIRST)
    life.kill()
    life.start()
    life.put("2", SECOND)
    life.expect(FIRST, SECOND)
    assert os.listdir(life.out) == [name]


def test_file_renamed_after_it_was_taken_is_one_message(make_spool: Make) -> None:
    """Under any name; before its confirmation comes, in one life (F3)."""
    life = make_spool()
    life.host.confirms = False
    life.put("a.unfinished", FIRST)
    life.expect(FIRST)
    (life.out / "a.unfinished").rename(life.out / "a")
    life.host.confirms = True
    life.host.confirm()
    life.host.run_until(lambda: not os.listdir(life.out), "it is removed under its new name")
    life.put("b", SECOND)
    life.expect(FIRST, SECOND)


def test_file_renamed_and_changed_after_it_was_taken_is_new(make_spool: Make) -> None:
    """Once, although it waits with the inode of the one that was taken; as a new file on ext4 has it, too."""
    life = make_spool(window=3)
    life.host.confirms = False
    for name in ("x.unfinished", "1", "2"):
        life.put(name, name.encode())
    life.host.settle()
    life.put("3", b"3")
    with (life.out / "x.unfinished").open("ab") as file:
        file.write(SECOND)
    (life.out / "x.unfinished").rename(life.out / "x")
    life.host.settle()
    life.host.confirms = True
    life.host.confirm()
    life.host.run_until(lambda: os.listdir(life.out) == [], "all are removed")
    assert life.host.bodies() == [b"x.unfinished", b"1", b"2", b"3", b"x.unfinished" + SECOND]


@pytest.mark.parametrize("confirmed", [False, True])
def test_rename_of_taken_file_survives_a_kill(make_spool: Make, confirmed: bool) -> None:
    """The journal has the old name."""
    life = make_spool()
    life.host.confirms = False
    life.put("a.unfinished", FIRST)
    life.expect(FIRST)
    if confirmed:
        life.host.store.confirm(1)
    life.kill()
    (life.out / "a.unfinished").rename(life.out / "a")
    life.start()
    life.put("b", SECOND)
    life.expect(FIRST, SECOND)
    life.host.run_until(lambda: not os.listdir(life.out), "both are removed")
    assert not life.said("is gone")


def test_hard_links_are_messages_of_their_own(make_spool: Make) -> None:
    """Two names of one inode in the spool, as `cp -l` makes them."""
    life = make_spool()
    life.host.confirms = False
    life.put("a", FIRST)
    life.expect(FIRST)
    (life.out / "b").hardlink_to(life.out / "a")
    life.expect(FIRST, FIRST)
    life.host.confirms = True
    life.host.confirm()
    life.host.run_until(lambda: not os.listdir(life.out), "both are removed")


def test_file_that_is_open_for_writing_is_not_taken(make_spool: Make) -> None:
    """No event changes that: touch(1) closes it, another name is renamed over or linked to it (F7)."""
    life = make_spool()
    with (life.out / "big").open("wb", buffering=0) as writer:
        writer.write(FIRST)
        life.host.settle()
        (life.out / "big").touch()
        settled(life, 0.3)
        (life.out / "big").rename(life.out / "bigger")
        settled(life, 0.3)
        (life.out / "link").hardlink_to(life.out / "bigger")
        life.put("other", b"other")
        life.expect(b"other")
        (life.out / "link").unlink()
        writer.write(SECOND)
    life.expect(b"other", FIRST + SECOND)
    life.host.run_until(lambda: not os.listdir(life.out), "it is removed")


def test_linked_tmpfile_is_taken_at_its_close(make_spool: Make) -> None:
    """Not before: its program may write on; and not only when it is looked at again (F5)."""
    life = make_spool()
    fd = os.open(life.out, os.O_TMPFILE | os.O_WRONLY)
    os.write(fd, FIRST)
    link_tmpfile(fd, life.out / "name")
    settled(life, 0.3)
    assert life.host.bodies() == []
    os.write(fd, SECOND)
    os.close(fd)
    life.expect(FIRST + SECOND)


def test_empty_file_that_was_just_created_waits_for_its_writer(make_spool: Make) -> None:
    """For an instant after its creation the writer is not visible. With mknod(2) there never is one."""
    life = make_spool()
    os.mknod(life.out / "name")
    settled(life, 0.3)
    assert life.host.bodies() == []
    with (life.out / "name").open("wb") as writer:
        writer.write(FIRST)
    life.expect(FIRST)
    os.mknod(life.out / "empty")
    life.expect(FIRST, b"")


def test_touch_of_a_taken_file_repeats_nothing(make_spool: Make) -> None:
    """Its time has changed, not its content. The same of a file that waits."""
    life = make_spool(window=1)
    life.host.confirms = False
    life.put("1", FIRST)
    life.put("2", SECOND)
    life.expect(FIRST)
    for name in "12":
        os.utime(life.out / name, (1, 1))
        (life.out / name).touch()
    life.host.settle()
    life.host.confirms = True
    life.host.confirm()
    life.expect(FIRST, SECOND)
    life.host.run_until(lambda: not os.listdir(life.out), "both are removed")


@pytest.mark.parametrize("in_place", [False, True])
def test_overwritten_file_that_waits_is_one_message(make_spool: Make, in_place: bool) -> None:
    """The content is the latest. Of a file that was taken already, the new content is a second message."""
    life = make_spool(window=1)
    life.host.confirms = False
    life.put("1", b"one")
    life.put("2", FIRST)
    life.expect(b"one")
    for name, body in (("1", b"one more"), ("2", SECOND)):
        if in_place:
            (life.out / name).write_bytes(body)
        else:
            life.put(name, body)
    life.host.settle()
    life.host.confirms = True
    life.host.confirm()
    life.expect(b"one", SECOND, b"one more")


@pytest.mark.parametrize("taken", [False, True])
def test_file_deleted_before_delivery_holds_nothing_up(make_spool: Make, taken: bool) -> None:
    """One that waits is no message; one that was taken is delivered, in this life from memory."""
    life = make_spool(window=1)
    life.host.confirms = False
    life.put("1", b"one")
    life.put("2", b"two")
    life.expect(b"one")
    (life.out / ("1" if taken else "2")).unlink()
    life.host.confirms = True
    life.host.confirm()
    life.put("3", b"three")
    life.expect(*[b"one", b"two", b"three"] if taken else [b"one", b"three"])
    life.host.run_until(lambda: not os.listdir(life.out), "the others are removed")


def test_order_is_kept_while_writers_are_counted_out(make_spool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a close just before it grants the lease: the next file must not overtake, whatever happens."""
    refused = [False] * 30
    lease = files.lease
    monkeypatch.setattr(files, "lease", lambda fd: refused.pop() if refused else lease(fd))
    life = make_spool()
    for number in range(5):
        (life.out / f"{9 - number}").write_bytes(b"%d" % number)
        for _ in range(5):
            (life.out / ".noise").write_bytes(b"")
            life.host.settle()
    life.expect(*[b"%d" % number for number in range(5)])
    assert life.host.bodies() == [b"%d" % number for number in range(5)]


def test_unreadable_file_is_counted_and_taken_when_readable(make_spool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """pread(2) fails with EIO, like on a bad disk. The agent lives, and other files pass. Sibling: open(2) fails."""
    read, broken = os.pread, [True]

    def failing(fd: int, size: int, offset: int) -> bytes:
        if broken[0] and os.fstat(fd).st_size == len(FIRST):
            raise OSError(errno.EIO, "Input/output error")
        return read(fd, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    monkeypatch.setattr("nsbridge.agents.endpoints.spool.source._REFUSED", 0.1)
    life = make_spool()
    life.put("bad", FIRST)
    life.put("good", b"good")
    life.expect(b"good")
    assert life.said("out/bad cannot be read: Input/output error; left where it is") == 1
    assert life.host.refused_files == 1
    settled(life, 0.3)
    assert life.said("out/bad") == 1
    broken[0] = False
    life.expect(b"good", FIRST)
    assert life.host.refused_files == 0
