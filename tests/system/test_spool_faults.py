"""A container uses all its power over its spool: no file, name or directory blocks the route or loses a message.

The rows of the table "How programs write into a spool" are in tests/unit/test_spool_writers.py, one by one; here some
of them as shells do it, through a real daemon.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import run, wait_until
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool, send_all, visible, wait_for_files

USER, OTHER = 54321, 54322
_NINE = [b"%d\n" % number for number in range(1, 10)]
PROGRAMS = {  # what a shell does in `out` → the messages that come of it, in any order
    # F3: a file is closed under one name and renamed to another one
    "for k in 1 2 3 4 5 6 7 8 9; do echo $k >m$k.tmp; sleep 0.01; mv m$k.tmp m$k; done": [
        b"%d\n" % k for k in range(1, 10)
    ],
    "for k in 1 2 3 4 5 6 7 8 9; do echo $k >m$k~; mv m$k~ m$k; done": _NINE,
    # F5: a file that was closed elsewhere is linked
    "echo x >../t; ln ../t a; rm ../t": [b"x\n"],
    "echo x >.t; ln .t a; ln .t b; rm .t": [b"x\n", b"x\n"],
    # F7: a file is closed by one program while another one writes it
    "(echo first; sleep 0.5; echo second) >big & sleep 0.1; touch big; wait": [b"first\nsecond\n"],
    "(echo first; sleep 0.5; echo second) >big & sleep 0.1; mv big bigger; wait": [b"first\nsecond\n"],
    "(echo 1; sleep 0.3) >>both & (sleep 0.1; echo 2) >>both; wait": [b"1\n2\n"],
}


@contextmanager
def spooling(directory: Path, web: EngineContainer, legacy: EngineContainer, more: str = "") -> Iterator[Nsbridged]:
    """Yield a daemon with a route whose spool has these further keys."""
    routes = route(web.spec, legacy.spec).replace('in = "/srv/in" }', f'in = "/srv/in"{more} }}', 1)
    with Nsbridged(directory, routes) as daemon:
        daemon.wait_for("RUNNING")
        yield daemon


def detail(daemon: Nsbridged, text: str) -> None:
    """Wait until status says it of the spool's agent."""
    wait_until(lambda: text in daemon.agents()["r:files"]["detail"], f"status says {text!r}")


def test_what_shells_do_gives_each_message_once(tmp_path: Path, unshare_container: Factory) -> None:
    """One after the other, in one life; no command of theirs fails."""
    web, legacy = unshare_container(), unshare_container()
    expected = [body for bodies in PROGRAMS.values() for body in bodies]
    with spooling(tmp_path, web, legacy) as daemon, Receiver(legacy, 0x51, len(expected)) as receiver:
        wait_until((web.rootfs / "srv/out").is_dir, "the spool is made")
        done = 0
        for program, bodies in PROGRAMS.items():
            run(["sh", "-ec", f"cd {web.rootfs}/srv/out; {program}"])
            done += len(bodies)
            wait_until(lambda: daemon.flow("r:files")["delivered"] == done, f"{bodies} of {program}")  # noqa: B023
            wait_until(lambda: not visible(web.rootfs / "srv/out"), "they are removed")
        assert sorted(message.body for message in receiver.messages()) == sorted(expected)
        daemon.wait_delivered("r:files", len(expected))


def test_unreadable_files_hold_nothing_up(tmp_path: Path, unshare_container: Factory) -> None:
    """A file of another user; one whose read fails, like a bound file of /proc; one without any permission.

    They are counted; the agent lives; what can be read by and by is taken. The kind: any error that a file has, not the
    agent or the directory. Which errors are the agent's is in test_faults_room.py.
    """
    web, legacy = unshare_container(), unshare_container()
    spool = web.rootfs / "srv/out"
    spool.mkdir()
    os.chown(spool, USER, USER)
    spool.chmod(0o1777)
    bound = spool / "2 bound"
    bound.touch()
    web.exec(["mount", "--bind", "/proc/1/timerslack_ns", "/srv/out/2 bound"])
    for name, owner in (("1 foreign", OTHER), ("3 root", 0)):
        (spool / name).write_bytes(b"secret")
        os.chown(spool / name, owner, owner)
        (spool / name).chmod(0o600)
    with spooling(tmp_path, web, legacy) as daemon, Receiver(legacy, 0x51, 3) as receiver:
        pid = daemon.agents()["r:files"]["pid"]
        put_into_spool(spool, [b"behind them"])
        os.chown(spool / visible(spool)[-1], USER, USER)
        wait_until(lambda: daemon.flow("r:files")["delivered"] == 1, "the file behind them is delivered")
        wait_until(lambda: daemon.flow("r:files")["refused_now"] == 3, "they are counted")
        put_into_spool(spool, [b"and another"])
        wait_until(lambda: daemon.flow("r:files")["delivered"] == 2, "what comes later is delivered")
        os.chown(spool / "1 foreign", USER, USER)
        assert [message.body for message in receiver.messages()] == [b"behind them", b"and another", b"secret"]
        wait_until(lambda: daemon.flow("r:files")["refused_now"] == 2, "the others are still counted")
        assert daemon.agents()["r:files"]["pid"] == pid
        said = daemon.said()
        assert "/srv/out/1 foreign cannot be opened: Permission denied" in said
        assert "/srv/out/2 bound " in said


def test_forged_names_lose_nothing(tmp_path: Path, unshare_container: Factory) -> None:
    """The receiver's user takes the next name, and the next hidden name; also across a kill of the agent.

    The kind: evidence that another program can make. Siblings in test_spool_sink.py: a hidden name that is removed.
    """
    web, legacy = unshare_container(), unshare_container()
    inside = web.rootfs / "srv/in"
    with spooling(tmp_path, web, legacy) as daemon:
        send_all(legacy, 0x52, [Sent(1, b"first")])
        first = wait_for_files(inside, 1)[0].name
        epoch, _, rest = first.partition("-")
        hidden = inside / f".{epoch}-{int(rest.split('.')[0]) + 1:020d}.part"
        (hidden / "full").mkdir(parents=True)
        forged = inside / first.replace("1.", "2.")
        forged.write_bytes(b"forged")
        send_all(legacy, 0x52, [Sent(1, b"honest"), Sent(1, b"next")])
        detail(daemon, f"{forged.name} already exists, and nsbridge did not create it")
        daemon.wait_delivered("r:queue", 1)
        kill_and_wait(daemon.agents()["r:files"]["pid"])
        detail(daemon, f"{forged.name} already exists")
        daemon.wait_delivered("r:queue", 1)
        forged.unlink()
        assert [file.read_bytes() for file in wait_for_files(inside, 3)] == [b"first", b"honest", b"next"]
        daemon.wait_delivered("r:queue", 3)


def test_done_on_another_mount_is_refused_at_the_start(tmp_path: Path, unshare_container: Factory) -> None:
    """It is refused before a message is taken. It continues when the directory is on the same mount."""
    web, legacy = unshare_container(), unshare_container()
    done = web.rootfs / "srv/done"
    done.mkdir()
    web.exec(["mount", "-t", "tmpfs", "tmpfs", "/srv/done"])
    with spooling(tmp_path, web, legacy, ', done = "/srv/done"') as daemon, Receiver(legacy, 0x51, 1) as receiver:
        text = "/srv/done is on another file system or mount than /srv/out"
        detail(daemon, text)
        put_into_spool(web.rootfs / "srv/out", [b"waits"])
        assert daemon.flow("r:files")["pending"] == 0
        web.exec(["umount", "/srv/done"])
        assert [message.body for message in receiver.messages()] == [b"waits"]
        wait_until(lambda: len(visible(done)) == 1, "it is moved")


def test_names_sort_after_lost_journals_and_a_clock_set_back(tmp_path: Path, unshare_container: Factory) -> None:
    """The names of the time before are those of the future (F16)."""
    web, legacy = unshare_container(), unshare_container()
    inside = web.rootfs / "srv/in"
    inside.mkdir()
    (inside / f"{0x7000000000000000:016x}-{9:020d}.1").write_bytes(b"of a better clock")
    with spooling(tmp_path, web, legacy) as daemon:
        send_all(legacy, 0x52, [Sent(1, b"one"), Sent(1, b"two")])
        files = wait_for_files(inside, 3)
        assert [file.read_bytes() for file in files] == [b"of a better clock", b"one", b"two"]
        daemon.call("stop", names=["r"], wait=True)
        for journal in (tmp_path / "state/journal/r").iterdir():
            journal.unlink()
        daemon.call("start", names=["r"])
        daemon.wait_for("RUNNING")
        send_all(legacy, 0x52, [Sent(1, b"three")])
        assert [file.read_bytes() for file in wait_for_files(inside, 4)][-1] == b"three"
        assert "new names begin with" in daemon.said()


@pytest.mark.parametrize("ignore", ['["*.xml", "draft-?"]', "[]"])
def test_ignore_has_the_names_that_are_not_taken(tmp_path: Path, unshare_container: Factory, ignore: str) -> None:
    """In the place of the default; hidden names never are."""
    web, legacy = unshare_container(), unshare_container()
    spool = web.rootfs / "srv/out"
    spool.mkdir()
    names = ["1.xml", "draft-1", "draft-10", "a.tmp", ".hidden"]
    taken = names[:4] if ignore == "[]" else names[2:4]
    with (
        spooling(tmp_path, web, legacy, f", ignore = {ignore}") as daemon,
        Receiver(legacy, 0x51, len(taken)) as receiver,
    ):
        for name in names:
            (spool / name).write_bytes(name.encode())
        assert sorted(message.body for message in receiver.messages()) == sorted(name.encode() for name in taken)
        wait_until(lambda: sorted(os.listdir(spool)) == sorted(set(names) - set(taken)), "only the others are left")
        assert daemon.flow("r:files")["refused_now"] == 0
