"""Reads of /proc are right, also when a process chose its name to mislead; bounded reads; escaped names."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbridge.config.schema import Container, Namespace
from nsbridge.supervisor.containers import engines, identity
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.identity import ContainerRefused, NotRunning, host_namespace_inodes


@given(st.text())
def test_a_quoted_name_is_printable_and_short(name: str) -> None:
    shown = identity.quoted(name)
    assert shown.isprintable()
    assert len(shown) <= 10 * identity.NAME_SHOWN + 3


def test_ordinary_names_are_shown_plain_and_hostile_ones_escaped() -> None:
    assert identity.quoted("web-1.ä") == '"web-1.ä"'
    assert identity.quoted('a"\x1b[2J\n\u202e\udc80') == r'"a\"\x1b[2J\n\u202e\udc80"'


def pidfile(path: Path) -> Container:
    return Container(engines.pidfile.KIND, str(path))


def test_a_pidfile_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(f" {os.getpid()}\n", encoding="ascii")
    path.chmod(0o644)
    assert containers.locate(pidfile(path)).pid == os.getpid()


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"", NotRunning, "is empty"),
        (b"\n", NotRunning, "is empty"),
        (b"4194305", NotRunning, "there is no process"),  # above the kernel's PID_MAX_LIMIT
        (b"-1", ContainerRefused, 'holds "-1"'),
        (b"0", ContainerRefused, "not a process number"),
        (b"1 2", ContainerRefused, "not a process number"),
        (b"\x1b[2J\xff", ContainerRefused, r"\\x1b\[2J"),
        (b"1" * 65, ContainerRefused, "longer than 64 bytes"),
    ],
)
def test_a_pidfile_that_names_no_process_has_its_own_error(
    tmp_path: Path, content: bytes, error: type[Exception], said: str
) -> None:
    path = tmp_path / "pid"
    path.write_bytes(content)
    path.chmod(0o644)
    with pytest.raises(error, match=said):
        containers.locate(pidfile(path))


def test_a_pidfile_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(str(os.getpid()), encoding="ascii")
    path.chmod(0o666)
    with pytest.raises(ContainerRefused, match="chmod go-w"):
        containers.locate(pidfile(path))


def test_a_fifo_a_directory_and_a_socket_are_not_waited_for(tmp_path: Path) -> None:
    fifo, directory, listener = (tmp_path / name for name in ("fifo", "directory", "socket"))
    os.mkfifo(fifo)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(listener))
        for path in (fifo, directory, listener):
            with pytest.raises(ContainerRefused, match="is not a regular file"):
                containers.locate(pidfile(path))
            with pytest.raises(NotRunning, match="is not a namespace file"):
                containers.locate(Container(engines.ns.KIND, str(path)))
    with pytest.raises(NotRunning, match="is not there"):
        containers.locate(pidfile(tmp_path / "missing"))


@pytest.mark.parametrize("name", ["", "x", "-1", "0", "1e3", "12345678901", "\u0661"])
def test_pid_takes_decimal_numbers_only(name: str) -> None:
    with pytest.raises(ContainerRefused, match="write pid:N"):
        containers.locate(Container(engines.pid.KIND, name))


def test_process_1_has_the_host_s_namespaces_if_it_is_the_host_s() -> None:
    """In a pod with the host's pids, nsbridge's own namespaces are the pod's."""
    own = os.stat("/proc/self/ns/ipc").st_ino
    pids = os.stat("/proc/self/ns/pid").st_ino
    hosts = {own}
    with suppress(PermissionError):  # not even root may look at process 1 on some machines
        hosts.add(os.stat("/proc/1/ns/ipc").st_ino)
    assert host_namespace_inodes(Namespace.IPC, initial_pid_namespace=pids) == hosts
    assert host_namespace_inodes(Namespace.IPC, initial_pid_namespace=pids + 1) == {own}
