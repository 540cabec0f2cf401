"""Logs with the real daemon and real containers: 20 MB each way, with rotations, while agents are SIGKILLed."""

from __future__ import annotations

import os
import random
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until
from tests.system.traffic import Receiver, Sent, random_messages, send_all

SIZE = 20_000_000  # bytes
KILLS = 15


def agent(name: str, container: EngineContainer, endpoint: str) -> str:
    return f'[route.r.agent.{name}]\ncontainer = "{container.spec}"\n{endpoint}\n'


def lines(size: int) -> list[bytes]:
    """Return random bytes without newlines, some empty."""
    return [b"", *(body.replace(b"\n", b"\r") for body in random_messages(size)), b""]


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def unframed(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        at += 4 + length
        yield data[at - length : at]


@contextmanager
def killing(daemon: Nsbridged, seed: int = 1) -> Iterator[list[str]]:
    """Kill one agent after the other, whenever it runs, KILLS times; yield the names of those that were."""
    killed: list[str] = []
    stop = threading.Event()
    chance = random.Random(seed)

    def strike() -> None:
        last: dict[str, int] = {}
        while len(killed) < KILLS and not stop.wait(chance.uniform(0.01, 0.1)):
            name, about = chance.choice([*daemon.agents().items()])
            if about["pid"] and last.get(name) != about["pid"]:
                last[name] = about["pid"]
                with suppress(ProcessLookupError):
                    os.kill(about["pid"], signal.SIGKILL)
                    killed.append(name)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def paced(messages: list[bytes], killed: list[str]) -> Iterator[list[bytes]]:
    """Yield the messages in shares, one more after each kill: so every kill meets some on their way."""
    share = -(-len(messages) // (KILLS + 1))
    for number, at in enumerate(range(0, len(messages), share)):
        wait_until(lambda number=number: len(killed) >= number, f"kill {number}")  # type: ignore[misc]
        yield messages[at : at + share]


def append(log: Path, batch: list[bytes]) -> None:
    with log.open("ab") as file:
        for body in batch:
            file.write(body + b"\n")


def wait_delivered(daemon: Nsbridged, source: str, count: int) -> None:
    wait_until(
        lambda: (daemon.flow(source)["delivered"], daemon.flow(source)["pending"]) == (count, 0),
        f"{count} messages of {source} are delivered and confirmed",
        90,
    )
    assert daemon.flow(source)["in_doubt"] == 0


def test_20_mb_of_lines_reach_a_queue_with_rotations_and_kills(tmp_path: Path, unshare_container: Factory) -> None:
    web, legacy = unshare_container(), unshare_container()
    routes = "[route.r]\n" + agent("web", web, 'log = { out = "/srv/app.log" }')
    routes += agent("legacy", legacy, "queue = { in = { key = 0x51 }, create = true }")
    messages = lines(SIZE)
    with Nsbridged(tmp_path, routes) as daemon, Receiver(legacy, 0x51, len(messages)) as receiver:
        daemon.wait_for("RUNNING")
        with killing(daemon) as killed:
            log = web.rootfs / "srv/app.log"
            for number, batch in enumerate(paced(messages, killed)):
                if number % 3 == 2:
                    log.rename(log.with_name(f"app.log.{number}"))
                append(log, batch)
            assert receiver.messages() == [Sent(1, body) for body in messages]
        wait_delivered(daemon, "r:web", len(messages))
    assert len(killed) == KILLS


def test_20_mb_from_a_queue_reach_a_log_with_rotations_and_kills(tmp_path: Path, unshare_container: Factory) -> None:
    web, legacy = unshare_container(), unshare_container()
    routes = "[route.r]\n" + agent("web", web, 'log = { in = "/srv/app.log", framing = "length" }')
    routes += agent("legacy", legacy, "queue = { out = { key = 0x52 }, create = true }")
    messages = random_messages(SIZE)
    log = web.rootfs / "srv/app.log"
    rotated: list[Path] = []
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        with killing(daemon) as killed:
            for number, batch in enumerate(paced(messages, killed)):
                if number % 3 == 2:
                    wait_until(log.exists, "a file is made for what has come")
                    rotated.append(log.with_name(f"app.log.{number}"))
                    log.rename(rotated[-1])
                send_all(legacy, 0x52, [Sent(1, body) for body in batch])
        wait_delivered(daemon, "r:legacy", len(messages))
        content = b"".join(path.read_bytes() for path in [*rotated, log] if path.exists())
    assert list(unframed(content)) == messages
    assert len(killed) == KILLS


def test_20_mb_of_lines_reach_another_log_both_ways_with_kills(tmp_path: Path, unshare_container: Factory) -> None:
    one, two = unshare_container(), unshare_container()
    endpoint = 'log = { out = "/srv/out.log", in = "/srv/in.log" }'
    routes = "[route.r]\n" + agent("one", one, endpoint) + agent("two", two, endpoint)
    messages = lines(SIZE // 2)
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        with killing(daemon) as killed:
            for there, back in zip(paced(messages, killed), paced(messages[::-1], killed), strict=True):
                append(one.rootfs / "srv/out.log", there)
                append(two.rootfs / "srv/out.log", back)
        wait_delivered(daemon, "r:one", len(messages))
        wait_delivered(daemon, "r:two", len(messages))
        assert (two.rootfs / "srv/in.log").read_bytes() == b"".join(body + b"\n" for body in messages)
        assert (one.rootfs / "srv/in.log").read_bytes() == b"".join(body + b"\n" for body in messages[::-1])


def test_logs_of_runc_containers_on_a_disk(tmp_path: Path, runc_container: Factory) -> None:
    """A message with a newline cannot be a line: it is a dead letter, and what follows it comes."""
    one, two = runc_container(), runc_container()
    routes = "[route.r]\n" + agent("one", one, 'log = { out = "/srv/out.log", framing = "length" }')
    routes += agent("two", two, 'log = { in = "/srv/in.log" }')
    messages = [b"first", b"not\na line", b"", b"last"]
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        log = one.rootfs / "srv/out.log"
        assert log.stat().st_size == 0, "a missing log is made"
        log.write_bytes(b"".join(map(framed, messages)))
        inside = two.rootfs / "srv/in.log"
        wait_until(lambda: inside.read_bytes() == b"first\n\nlast\n", "the lines arrive")
        wait_until(lambda: daemon.flow("r:one")["pending"] == 0, "all is confirmed")
        daemon.wait_delivered("r:one", 3)
        assert daemon.flow("r:one")["dead"] == 1
    (letter,) = (tmp_path / "state/dead/r/two").glob("*.body")
    assert letter.read_bytes() == messages[1]


@pytest.mark.parametrize("kind", ["truncated", "too long"])
def test_what_a_log_cannot_give_is_in_the_daemon_s_log(tmp_path: Path, unshare_container: Factory, kind: str) -> None:
    one, two = unshare_container(), unshare_container()
    routes = "[route.r]\n" + agent("one", one, 'log = { out = "/srv/out.log", max_message = 100 }')
    routes += agent("two", two, 'log = { in = "/srv/in.log" }')
    log, inside = one.rootfs / "srv/out.log", two.rootfs / "srv/in.log"
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        log.write_bytes(b"one\n")
        wait_until(lambda: inside.read_bytes() == b"one\n", "the first line arrives")
        if kind == "truncated":
            log.write_bytes(b"two\n")
        else:
            with log.open("ab") as file:
                file.write(b"x" * 101 + b"\ntwo\n")
        wait_until(lambda: inside.read_bytes() == b"one\ntwo\n", "the next line arrives")
        said = "was truncated or written anew" if kind == "truncated" else "102 bytes at byte 4 are passed over"
        wait_until(lambda: said in daemon.said(), "the log says so")
