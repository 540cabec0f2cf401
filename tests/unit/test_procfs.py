r"""The one parser of /proc/PID/stat and status, also when a process chose its name to mislead.

The kind: a container's bytes in a text of the kernel. The kernel escapes only `\n` and `\` of a name in `status`, and
nothing of it in `stat`. A reader that splits at more than `\\n` takes a name for a line.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbridge.agents import linux
from nsbridge.supervisor.containers import identity
from nsbridge.supervisor.host import procfs, usage
from tests import child

# proc_pid_stat(5): fields 3 to 22
FIELDS = b"S 1 77 77 0 -1 4194624 560 0 0 0 3 4 0 0 20 0 5 0 104284 1040105472 2358"
# What splitlines() of str and bytes take for the end of a line, and what may end a name in `stat`.
NAMES = [
    b"\rUid: 0 0",
    b"\r\nUid: 0 0",
    b"\x0bUid:\t0\t0",
    b"\x0cUid:\t0\t0",
    b"\x1cUid:\t0\t0",
    b"\x1dGid:\t0\t0",
    b"\x1eGid:\t0\t0",
    b"\xc2\x85Uid:\t0\t0",
    b"\x85Uid:\t0\t0",
    b"\xe2\x80\xa8Uid:\t0\t0",
    b"\xe2\x80\xa9Uid:\t0\t0",
    b"\nUid:\t0\t0",
    b"x) Z 1 1 (",
    b") R 1\n2 (",
    b"\nNSpid:\t9\t1",
    b"\\nUid:\t0\t0",
    b"\xff\xfe",
    b"",
]


@given(st.binary(max_size=64))
def test_name_cannot_forge_fields_of_stat(comm: bytes) -> None:
    about = procfs.parse_stat(b"42 (" + comm + b") " + FIELDS + b"\n")
    assert (about.state, about.parent, about.start_time, about.cpu_ticks) == ("S", 1, 104284, 7)
    assert (about.is_kernel_thread, about.is_exiting, about.exit_status) == (False, False, None)
    assert os.fsencode(about.comm) == comm


@pytest.mark.parametrize("text", [b"", b"42", b"42 (x", b"42 (x) S 1", b") (", b"42 (x) S " + b"x " * 30])
def test_what_is_no_stat_line_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        procfs.parse_stat(text)


def test_kernel_thread_is_recognized() -> None:
    line = b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0\n"
    assert procfs.parse_stat(line).is_kernel_thread
    assert not procfs.read_stat(os.getpid()).is_kernel_thread


def test_exiting_process_shows_its_exit_status() -> None:
    line = b"42 (x) " + FIELDS.replace(b"4194624", b"4194628") + b" 0" * 27 + b" 9\n"
    about = procfs.parse_stat(line)
    assert about.is_exiting
    assert os.waitstatus_to_exitcode(about.exit_status or 0) == -9


@pytest.mark.parametrize(
    ("numbers", "is_init"), [("77", False), ("1", False), ("77\t1", True), ("77\t1\t1", True), ("77\t1\t5", False)]
)
def test_init_of_its_own_pid_namespace_is_recognized(numbers: str, is_init: bool) -> None:
    assert procfs.parse_is_init(f"Name:\tNSpid:\t1\nNSpid:\t{numbers}\nNSpgid:\t1\n".encode()) == is_init


def test_effective_ids_are_the_second_column() -> None:
    status = b"Name:\tUid:\t9\t9\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nUid:\t0\t0\t0\t0\n"
    assert procfs.parse_effective_ids(status) == (2, 6)
    for text in (b"", b"Name:\tx\n", b"Uid:\t1\nGid:\t1\n", b"Uid:\tx\tx\nGid:\t1\t1\n"):
        with pytest.raises(ValueError, match=r".*"):
            procfs.parse_effective_ids(text)


@given(st.binary(max_size=64).filter(lambda name: b"\n" not in name))
def test_name_cannot_forge_lines_of_status(name: bytes) -> None:
    text = b"Name:\t" + name + b"\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nSeccomp:\t2\n"
    assert procfs.parse_effective_ids(text) == (7, 8)
    assert procfs.parse_status(text).keys() == {"Name", "Uid", "Gid", "Seccomp"}


@contextmanager
def named(name: bytes) -> Iterator[int]:
    """Yield a real child of uid 4321 and gid 4322 that has this name."""
    come, tell = os.pipe()
    stay, leave = os.pipe()

    def main() -> int:
        os.setresgid(4322, 4322, 4322)
        os.setresuid(4321, 4321, 4321)
        linux.prctl(linux.PR_SET_NAME, ctypes.addressof(ctypes.create_string_buffer(name)))
        os.write(tell, b"!")
        os.close(leave)
        os.read(stay, 1)
        return 0

    pid = child.fork(main)
    os.read(come, 1)
    os.close(stay)
    try:
        yield pid
    finally:
        os.close(leave)
        os.waitpid(pid, 0)
        os.close(come)
        os.close(tell)


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_real_process_cannot_forge_who_it_is(name: bytes) -> None:
    with named(name) as pid:
        about = procfs.read_stat(pid)
        assert (os.fsencode(about.comm), about.parent) == (name[:15], os.getpid())
        status = procfs.read_status(pid)
        assert status["Uid"].split() == ["4321"] * 4
        assert status["Gid"].split() == ["4322"] * 4
        held = identity.ContainerProcess.open(identity.found_by_pid(pid))
        assert (held.uid, held.gid) == (4321, 4322)
        held.close()
        assert not identity.is_init_of_its_own(pid)
        assert usage.children_among(os.getpid(), [0, 1, pid, 1 << 63]) == [pid]
        assert procfs.confinement(pid, 0) == {"seccomp": False, "landlock": 0, "no_new_privs": False}


def test_many_groups_do_not_hide_what_comes_after_them() -> None:
    """65,536 of them are longer than what used to be read, and stand before NSpid and the capabilities."""
    before = b"Name:\tx\nUid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\nGroups:\t" + b"4294967294 " * 65536
    text = before + b"\nNSpid:\t77\t1\nSeccomp:\t2\n"
    assert len(text) < procfs.STATUS_LIMIT
    assert procfs.parse_is_init(text)
    assert procfs.parse_status(text)["Seccomp"] == "2"
