"""Loss of ties, imports and power in a forked child: each test's child is a real one, forked by root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.confinement import entry
from nsbridge.agents.fork import EXIT_AGAIN
from tests.child import Family, be_subreaper, exit_code, in_child

NOBODY = 65534


def status_of(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("keep", [set(), {0}, {0, 1, 2}, {2, 5}, {1, 2, 3, 900}, {900}])
def test_close_all_but_closes_all_but_these(keep: set[int]) -> None:
    """os.closerange(0, 0) closes everything, so 0 among them is the difficult case."""

    def child() -> int:
        null = os.open("/dev/null", os.O_RDONLY)
        for fd in (*range(8), 900, 1023):
            os.dup2(null, fd)
        entry.close_all_but(keep)
        return sum(is_open(fd) != (fd in keep) for fd in range(2000))

    assert exit_code(child) == 0


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# -- what an agent must not load


_ATTEMPTS = """
import sys, time
from nsbridge.agents.confinement import entry
entry.freeze_imports()
def attempt(action, *arguments):
    try:
        action(*arguments)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def _attempts(program: str) -> list[str]:
    """Return what a new interpreter prints, a line each: this one has imported for other tests already."""
    done = subprocess.run([sys.executable, "-c", _ATTEMPTS + program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_after_freezing_nothing_is_imported() -> None:
    names = ("wave", "xml.dom", "_strptime", "nonsense")
    answers = _attempts("".join(f"attempt(__import__, {name!r})\n" for name in names))
    assert len(answers) == len(names)
    assert all("it would be read from the container" in answer for answer in answers), answers


def test_after_freezing_what_would_import_fails_with_one_line() -> None:
    strptime, idna = _attempts("attempt(time.strptime, '1', '%d')\nattempt('x.y'.encode, 'idna')")
    assert strptime.startswith("ImportError: import of '_strptime' in an agent")
    assert idna == "LookupError: unknown encoding: idna"


def test_after_freezing_all_that_an_agent_does_needs_no_import() -> None:
    """A new interpreter that has loaded an agent's modules and nothing else; its finders are gone, then all is used."""
    program = """
import os, sys
from nsbridge.agents import main, runtime
from nsbridge.agents.confinement import entry
entry.freeze_imports()
before = set(sys.modules)
import json, struct, time, threading, signal, socket, select
socket.socketpair()
assert json.loads(json.dumps({"text": "\\udcff\\u00e4", "n": 1.5})) == {"text": "\\udcff\\u00e4", "n": 1.5}
for bad in (b"{", b"\\xff", b"[" * 100_000):
    try:
        json.loads(bad)
    except (ValueError, RecursionError) as error:
        str(error)
assert struct.pack("<Q", 5)
time.strftime("%H:%M:%S"), time.time(), time.monotonic_ns(), time.gmtime()
b"\\xff".decode("utf-8", "backslashreplace"), "\\udcff".encode("utf-8", "surrogateescape"), os.fsencode("\\udcff")
b"a".decode("latin-1"), "a".encode("ascii", "replace"), f"{1.5:.0f} {b'x'!r} {3:>4}"
for failing in (lambda: os.open("/nonexistent", 0), lambda: 1 / 0, lambda: {}["x"], lambda: os.kill(1 << 30, 0)):
    try:
        failing()
    except Exception as error:
        str(error), repr(error), os.strerror(getattr(error, "errno", None) or 5)
thread = threading.Thread(target=lambda: None)
thread.start(); thread.join()
signal.Signals(9).name, signal.valid_signals()
from nsbridge.agents import control, linux, wire
from nsbridge.agents.endpoints import file, queue, spool, watch, files
watch.INotify().close()
assert set(sys.modules) == before, set(sys.modules) - before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_after_freezing_the_container_s_time_zone_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/localtime")  # opening it hangs
    program = """
import os, signal, sys, time
from nsbridge.agents.confinement import entry
signal.alarm(5)
entry.freeze_imports()
os.chroot(sys.argv[1])
time.localtime(0), time.ctime(0), time.strftime("%c %Z"), time.mktime(time.gmtime(0))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TZ"}
    done = subprocess.run([sys.executable, "-c", program, tmp_path], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def attempt(action: Callable[..., object], *arguments: object) -> str:
    """Return the name of what was raised, empty if nothing was."""
    try:
        action(*arguments)
    except Exception as error:  # noqa: BLE001  (that is the question)
        return f"{type(error).__name__}: {error}"
    return ""


# -- the parent's death


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Make this process the parent of the children of killed children."""
    be_subreaper(yes=True)
    yield
    be_subreaper(yes=False)


def test_an_agent_dies_with_its_supervisor(subreaper: None) -> None:
    assert Family(entry.die_with_the_supervisor).kill_parent() == -signal.SIGKILL


def test_an_agent_that_changed_its_user_dies_with_its_supervisor(subreaper: None) -> None:
    def main(parent: int) -> None:
        entry.die_with_the_supervisor(parent)
        entry.drop_privileges(NOBODY, NOBODY)
        entry.die_with_the_supervisor(parent)

    assert Family(main).kill_parent() == -signal.SIGKILL


def test_an_agent_whose_supervisor_is_already_dead_exits(subreaper: None) -> None:
    def late(parent: int) -> None:
        while os.getppid() == parent:  # from its death on no signal comes any more
            time.sleep(0.001)  # polls
        entry.die_with_the_supervisor(parent)

    assert Family(late, ready_before=True).kill_parent() == EXIT_AGAIN


# -- privileges


@pytest.mark.parametrize(("uid", "gid"), [(NOBODY, NOBODY), (1000, 2000), (0, 0)])
def test_an_agent_has_no_power_left(uid: int, gid: int) -> None:
    def child() -> tuple[dict[str, str], int]:
        os.setgroups([])
        entry.drop_privileges(uid, gid)
        return status_of("self"), linux.prctl(3)  # PR_GET_DUMPABLE

    status, dumpable = in_child(child)
    sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert not any(sets.values()), sets
    assert status["NoNewPrivs"] == "1"
    assert dumpable == 0
    assert status["Uid"].split() == [str(uid)] * 4
    assert status["Gid"].split() == [str(gid)] * 4
    assert status["Groups"] == ""


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_an_agent_cannot_take_its_power_back(uid: int) -> None:
    def child() -> list[str]:
        entry.drop_privileges(uid, uid)
        return [
            attempt(os.setresuid, 1, 1, 1),
            attempt(os.setgroups, [0]),
            attempt(os.chroot, "/tmp"),
            attempt(linux.unshare, linux.CLONE_NEWNS),
            attempt(linux.mount, "none", "/tmp", "tmpfs"),
        ]

    assert [answer.split(":")[0] for answer in in_child(child)] == ["PermissionError"] * 5
