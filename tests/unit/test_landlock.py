"""Rights that Landlock leaves an agent: as rules for every version of it, and as this kernel enforces them."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.confinement import entry, landlock
from nsbridge.agents.endpoints.nats.config import NatsEndpoint, NatsIn
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.config.schema import AgentConfig, Container
from nsbridge.supervisor.containers import engines
from tests.child import in_child

HEADER = Path("/usr/include/linux/landlock.h")
SPOOL = SpoolEndpoint(out="/a/out", in_="/a/in", done="/a/done")
AGENT = AgentConfig("r:a", Container(engines.host.KIND, ""), SPOOL)
needs_landlock = pytest.mark.skipif(linux.landlock_abi() == 0, reason="this kernel has no Landlock, or it is off")


def named(rights: int) -> set[str]:
    """Return their names in the kernel's header."""
    bits = re.findall(r"define LANDLOCK_ACCESS_FS_(\w+)\s+\(1ULL << (\d+)\)", HEADER.read_text(encoding="utf-8"))
    later = [("TRUNCATE", 14), ("IOCTL_DEV", 15)]  # of headers newer than Debian 12's
    return {name for name, bit in [*bits, *later] if rights >> int(bit) & 1}


def test_only_what_a_message_in_a_file_needs_is_granted() -> None:
    assert named(landlock.granted(7)) == {
        "READ_FILE",
        "WRITE_FILE",
        "READ_DIR",
        "REMOVE_FILE",
        "MAKE_DIR",
        "MAKE_REG",
        "REFER",
        "TRUNCATE",
    }
    refused = named(landlock.handled(7)) - named(landlock.granted(7))
    assert refused == {
        "EXECUTE",
        "REMOVE_DIR",
        "MAKE_CHAR",
        "MAKE_BLOCK",
        "MAKE_SOCK",
        "MAKE_FIFO",
        "MAKE_SYM",
        "IOCTL_DEV",
    }


@pytest.mark.parametrize(
    ("abi", "fields"),
    [
        (1, (0x1FFF,)),
        (2, (0x3FFF,)),
        (3, (0x7FFF,)),
        (4, (0x7FFF, 3)),
        (5, (0xFFFF, 3)),
        (6, (0xFFFF, 3, 3)),
        (7, (0xFFFF, 3, 3)),
        (99, (0xFFFF, 3, 3)),
    ],
)
def test_a_kernel_is_only_asked_for_what_it_knows(abi: int, fields: tuple[int, ...]) -> None:
    """It would refuse the whole with EINVAL or E2BIG. What later versions bring is not handled: nobody knows it."""
    assert landlock.ruleset(abi) == struct.pack(f"<{len(fields)}Q", *fields)
    rights, directory = struct.unpack("<Qi", landlock.rule(abi, 5)[1])
    assert (rights & ~fields[0], directory) == (0, 5)


# -- what this kernel says


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Make /a, which is granted, and /b, which is not; both have a file."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x")
    return tmp_path


def restricted(places: Path, then: Callable[[], object]) -> object:
    """Return the result of `then` in a child that was granted places/a."""

    def child() -> object:
        entry.drop_privileges(0, 0)
        fd = os.open(places / "a", os.O_PATH)
        assert entry.restrict_files(AGENT, [fd]) == linux.landlock_abi()
        os.close(fd)
        return then()

    return in_child(child)


def refusal(action: Callable[..., object], *arguments: object, **keywords: object) -> str:
    """Return the name of the error; empty if it succeeded."""
    try:
        action(*arguments, **keywords)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


@needs_landlock
def test_beneath_its_directories_an_agent_can_do_what_it_does(places: Path) -> None:
    def work() -> list[str]:
        os.chdir(places / "a")
        return [
            refusal(os.open, "file", os.O_RDWR | os.O_TRUNC),
            refusal(os.listdir, "."),
            refusal(os.mkdir, "done"),
            refusal(os.open, "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600),
            refusal(os.rename, "new", "renamed"),
            refusal(os.rename, "renamed", "done/moved"),
            refusal(os.unlink, "done/moved"),
        ]

    assert restricted(places, work) == [""] * 7


@needs_landlock
def test_what_is_not_beneath_them_is_refused(places: Path) -> None:
    def work() -> dict[str, str]:
        beside, etc = places / "b", "/etc/passwd"
        return {
            "read": refusal(os.open, beside / "file", os.O_RDONLY),
            "write": refusal(os.open, beside / "file", os.O_WRONLY),
            "truncate": refusal(os.truncate, beside / "file", 0),
            "list": refusal(os.listdir, beside),
            "make": refusal(os.open, beside / "new", os.O_WRONLY | os.O_CREAT, 0o600),
            "remove": refusal(os.unlink, beside / "file"),
            "host": refusal(os.open, etc, os.O_RDONLY),
            "by ..": refusal(os.open, places / "a/../b/file", os.O_RDONLY),
        }

    assert set(restricted(places, work).values()) == {"EACCES"}  # type: ignore[attr-defined]
    assert (places / "b/file").read_bytes() == b"x"


@needs_landlock
def test_what_is_no_message_cannot_be_made_or_run_there(places: Path) -> None:
    (places / "a/program").write_text("#!/bin/true\n")
    (places / "a/program").chmod(0o755)

    def work() -> dict[str, str]:
        os.chdir(places / "a")
        return {
            "fifo": refusal(os.mkfifo, "x"),
            "link": refusal(os.symlink, "file", "x"),
            "device": refusal(os.mknod, "x", 0o20600, os.makedev(1, 3)),
            "directory": refusal(os.rmdir, "empty"),
            "run": refusal(os.execv, "program", ["program"]),
        }

    (places / "a/empty").mkdir()
    answers = restricted(places, work)
    assert set(answers.values()) <= {"EACCES", "EPERM"}, answers  # type: ignore[attr-defined]


@needs_landlock
def test_other_processes_cannot_be_signalled(places: Path) -> None:
    if linux.landlock_abi() < 6:
        pytest.skip("since ABI 6")
    parent = os.getpid()
    assert restricted(places, lambda: [refusal(os.kill, parent, 0), refusal(os.kill, os.getpid(), 0)]) == ["EPERM", ""]


@pytest.mark.skipif(linux.landlock_abi() < 4, reason="this kernel's Landlock does not restrict TCP")
def test_agent_of_nats_connects_to_its_servers_ports_only() -> None:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    mine, other = (server.getsockname()[1] for server in servers)
    endpoint = NatsEndpoint(in_=NatsIn("s"), servers=(f"nats://127.0.0.1:{mine}",))

    def connect(port: int) -> str:
        with socket.socket() as one:
            return refusal(one.connect, ("127.0.0.1", port))

    def child() -> object:
        entry.drop_privileges(0, 0)
        entry.restrict_files(dataclasses.replace(AGENT, endpoint=endpoint), [])
        return [connect(mine), connect(other)]

    assert in_child(child) == ["", "EACCES"]
    for server in servers:
        server.close()
