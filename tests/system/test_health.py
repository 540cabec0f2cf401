"""`inspect` against real processes with real namespaces, capabilities and filters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.health import processes as health

DEADLINE = 20.0  # seconds


@contextmanager
def _running(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run `command`, which prints `ready`, then only sleeps, and lives until it is killed."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            end = time.monotonic() + DEADLINE
            while psutil.Process(process.pid).status() != psutil.STATUS_SLEEPING:
                assert time.monotonic() < end, "it has not come to rest in time"
            yield process
        finally:
            process.kill()


def _python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import os, signal\n{program}\nprint('ready', flush=True)\nsignal.pause()")


def _facts(pid: int, **options: Any) -> dict[str, Any]:
    return health.inspect(pid, **options)


def test_an_ordinary_process_is_described() -> None:
    with _running(*_python("extra = os.open('/dev/null', os.O_RDONLY)")) as process:
        facts = _facts(process.pid)
    assert (facts["pid"], facts["ppid"], facts["threads"]) == (process.pid, os.getpid(), 1)
    assert facts["status"] == "sleeping"
    assert facts["uids"] == {"real": 0, "effective": 0, "saved": 0}
    assert 0 < facts["memory"]["own"] <= facts["memory"]["pss"] <= facts["memory"]["rss"]
    assert {"fd": 3, "target": "/dev/null"} in facts["descriptors"]["open"]
    assert facts["descriptors"]["count"] == len(facts["descriptors"]["open"]) == 4
    assert "sys_admin" in facts["capabilities"]["bounding"]


def test_cpu_is_what_was_used_over_the_life_of_the_process() -> None:
    with _running(*_python("sum(range(20_000_000))")) as process:
        facts = _facts(process.pid)
        again = _facts(process.pid)
    assert facts["cpu"]["user_s"] > 0.05
    assert 0 < facts["cpu"]["percent"] <= 110
    assert 0 < facts["uptime_s"] <= again["uptime_s"] < 120


def test_uptime_is_near_the_truth() -> None:
    started = time.monotonic()
    with _running(*_python("")) as process:
        facts = _facts(process.pid)
        assert abs(facts["uptime_s"] - (time.monotonic() - started)) < 2


def test_given_up_power_is_shown_as_given_up() -> None:
    unprivileged = (
        "setpriv",
        "--reuid=51000",
        "--regid=51001",
        "--clear-groups",
        "--no-new-privs",
        "--bounding-set=-all",
    )
    with _running(*unprivileged, "sh", "-c", "echo ready; exec sleep 1000") as process:
        facts = _facts(process.pid)
    assert facts["uids"]["effective"] == 51000
    assert facts["gids"]["effective"] == 51001
    assert facts["no_new_privs"] is True
    assert facts["capabilities"] == {
        name: [] for name in ("inheritable", "permitted", "effective", "bounding", "ambient")
    }


@pytest.mark.parametrize(("with_filter", "expected"), [(False, "off"), (True, "filter")])
def test_a_seccomp_filter_is_shown(with_filter: bool, expected: str) -> None:
    filtered = """
import ctypes, struct
libc = ctypes.CDLL(None)
allow_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7fff0000))  # BPF_RET, SECCOMP_RET_ALLOW
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, struct.pack("HP", 1, ctypes.addressof(allow_all)), 0, 0) == 0  # PR_SET_SECCOMP
"""
    with _running(*_python(filtered if with_filter else "")) as process:
        assert _facts(process.pid)["seccomp"] == expected


def test_inspect_shows_whose_namespaces_they_are() -> None:
    with (
        _running("unshare", "--ipc", "--mount", "sh", "-c", "echo ready; exec sleep 1000") as container,
        _running("nsenter", f"--ipc=/proc/{container.pid}/ns/ipc", "sh", "-c", "echo ready; exec sleep 1000") as agent,
    ):
        facts = _facts(agent.pid, container_pid=container.pid)
        inode = os.stat(f"/proc/{container.pid}/ns/ipc").st_ino
    assert facts["namespaces"]["ipc"] == {"inode": inode, "host": "different", "container": "same"}
    assert facts["namespaces"]["mnt"]["host"] == "same"
    assert facts["namespaces"]["mnt"]["container"] == "different"
    assert {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} <= facts["namespaces"].keys()


def test_a_container_that_has_gone_is_left_out() -> None:
    facts = _facts(os.getpid(), container_pid=_dead())
    assert facts["namespaces"]["mnt"].keys() == {"inode", "host"}


def test_a_process_that_has_gone_is_one_line() -> None:
    with pytest.raises(NsbridgeError, match=r"^pid \d+: the process has just ended") as error:
        health.inspect(_dead())
    assert "\n" not in str(error.value)


def test_a_process_that_waits_to_be_reaped_counts_as_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(NsbridgeError, match="has just ended"):
            health.inspect(process.pid)


def test_a_stranger_s_process_is_one_line_for_a_non_root_user() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(51000, 51000, 51000)
        try:
            health.inspect(1)
            os.write(writer, b"no error")
        except BaseException as error:  # noqa: BLE001
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        assert answer.read().startswith("NsbridgeError: pid 1: not permitted")
    os.waitpid(child, 0)


def test_more_descriptors_than_are_listed_are_counted() -> None:
    many = health.MAX_DESCRIPTORS + 50
    with _running(*_python(f"held = [os.open('/dev/null', os.O_RDONLY) for _ in range({many})]")) as process:
        descriptors = _facts(process.pid)["descriptors"]
    assert len(descriptors["open"]) == health.MAX_DESCRIPTORS
    assert descriptors["count"] == many + 3


def _dead() -> int:
    """Return the pid of a process that has ended just now."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, signal.SIG_DFL)
    return process.pid
