"""A kind of endpoint that the product does not have is one file: FIFOs, in real namespaces with the real daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.config.errors import ConfigError
from nsbridge.config.load import parse
from tests.system.conftest import Factory
from tests.system.fifo_daemon import LINES
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import wait_readable, wait_until

BODIES = [b"", b"one", b"caf\xc3\xa9 \xff", *(b"%d" % number * 100 for number in range(200))]


class FifoDaemon(Nsbridged):
    """nsbridged that knows the kind `fifo`."""

    program = ("tests.system.fifo_daemon", "all")


class WithoutCall(Nsbridged):
    program = ("tests.system.fifo_daemon", "no-call")


class WithoutRight(Nsbridged):
    program = ("tests.system.fifo_daemon", "no-right")


def route(source: str, sink: str) -> str:
    return (
        f'[route.r.agent.one]\ncontainer = "{source}"\nfifo = {{ out = "/srv/out", mode = "0600" }}\n'
        f'[route.r.agent.two]\ncontainer = "{sink}"\nfifo = {{ in = "/srv/in", prefix = "> " }}\n'
    )


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    wait_until(path.exists, f"{path} is there")
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def lines(fd: int, count: int) -> list[bytes]:
    found = b""
    while found.count(b"\n") < count:
        wait_readable(fd, "a line comes")
        found += os.read(fd, 65536)
    return found.removesuffix(b"\n").split(b"\n")


def test_kind_of_a_test_relays_between_containers(tmp_path: Path, unshare_container: Factory) -> None:
    """It brings a system call, a Landlock right, a key of its own and a journal cell."""
    one, two = unshare_container(), unshare_container()
    with FifoDaemon(tmp_path, route(one.spec, two.spec)) as daemon:
        daemon.wait_for("RUNNING")
        with opened(one.rootfs / "srv/out", os.O_WRONLY) as out, opened(two.rootfs / "srv/in", os.O_RDWR) as in_:
            os.write(out, b"\n".join(BODIES[:3]) + b"\n")
            assert lines(in_, 3) == [b"> " + body for body in BODIES[:3]]
            kill_and_wait(daemon.agents()["r:two"]["pid"])
            for body in BODIES[3:]:
                os.write(out, body + b"\n")
            assert lines(in_, len(BODIES) - 3) == [b"> " + body for body in BODIES[3:]]
            wait_until(lambda: daemon.flow("r:one")["pending"] == 0, "all is confirmed")
        agents = daemon.agents()
        assert {agent["endpoint"] for agent in agents.values()} == {"fifo"}
        assert agents["r:one"]["confinement"]["seccomp"]
    for side in ("one.out", "two.in"):
        cell = (tmp_path / "state/journal/r" / side).read_bytes()[128 + 8 * LINES :][:8]
        assert int.from_bytes(cell, "little") == len(BODIES)


@pytest.mark.parametrize("program", [WithoutCall, WithoutRight])
def test_kind_needs_the_call_and_the_right_that_it_names(
    tmp_path: Path, unshare_container: Factory, program: type[Nsbridged]
) -> None:
    """Without either one the agent cannot make its FIFO. So an agent that does not ask for them does not have them."""
    assert linux.landlock_abi(), "this kernel has no Landlock"
    one, two = unshare_container(), unshare_container()
    with program(tmp_path, route(one.spec, two.spec)) as daemon:
        wait_until(lambda: "srv/out" in daemon.agents()["r:one"]["detail"], "the agent shows why it waits")
        assert not (one.rootfs / "srv/out").exists()


def test_kind_that_is_not_registered_is_unknown(tmp_path: Path) -> None:

    with pytest.raises(ConfigError, match="fifo: unknown key"):
        parse(route("pid:1", "pid:2"), "f.toml")
