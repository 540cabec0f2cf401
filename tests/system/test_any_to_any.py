"""Each message of any source is handed over or becomes a dead letter at any sink (issue 13, F17's kind).

To the kind belong: a message that is longer than the window, than a packet, than the sink's queue, than the quota of
dead letters; an empty one; one that the sink's framing cannot hold; the longest name of a file; the largest type.
Each route has a window of one byte and one message, so that a message that cannot pass would stop all after it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nsbridge.config.schema import MAX_MESSAGE
from tests.posix_queue import PosixQueue
from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until
from tests.system.test_queue_faults import in_ipc
from tests.system.traffic import Sent, put_into_spool, send_all

LONG = 5 << 20  # bytes: many packets, more than any queue takes
SOURCES = ("spool", "line", "length", "file", "queue", "mqueue", "socket")
SINKS = ("spool", "line", "length", "file", "queue", "mqueue", "socket")


def agent(kind: str, side: str, name: str, number: int, spec: str) -> str:
    """Return one side of a route, as TOML."""
    head = f'[route.{name}.agent.{side}]\ncontainer = "{spec}"\n'
    if kind == "queue":
        return head + f"queue = {{ {side} = {{ key = {0x1000 + number} }}, create = true }}\n"
    if kind == "mqueue":  # few messages: the kernel bounds the bytes of all POSIX queues of a user
        return head + f'mqueue = {{ {side} = {{ name = "/{name}" }}, create = true, max_messages = 5 }}\n'
    if kind == "socket":
        return head + f'socket = {{ {side} = "/srv/{name}-{side}", max_message = "64MiB" }}\n'
    framing = f', framing = "{kind}"' if kind in ("line", "length") else ""
    table = "log" if framing else kind
    return head + f'{table} = {{ {side} = "/srv/{name}-{side}"{framing}, max_message = "64MiB" }}\n'


def routes(one: str, other: str) -> str:
    """Return routes from each source to each sink."""
    made = ""
    for number, name in enumerate(names()):
        source, _, sink = name.partition("-")
        made += f"[route.{name}]\nwindow = {{ messages = 1, bytes = 1 }}\n"
        made += agent(source, "out", name, number, one) + agent(sink, "in", name, number, other)
    return made


def names() -> list[str]:
    """Return the names of the routes."""
    return [f"{source}-{sink}" for source in SOURCES for sink in SINKS]


def flow(daemon: Nsbridged, name: str) -> dict[str, Any]:
    """Return the status of the route's only flow."""
    return daemon.flow(f"{name}:out")


def bodies(source: str, longest: int) -> list[bytes]:
    """Return all kinds of messages that it can have."""
    if source in ("queue", "mqueue", "socket"):
        return [b"", b"x", b"two\nlines", b"x" * 8192, b"last"]
    long = b"x" * longest
    return [b"", b"x", long, b"last"] if source == "line" else [b"", b"x", long, b"two\nlines", b"last"]


def leave(container: Any, name: str, number: int, messages: list[bytes], daemon: Nsbridged) -> None:
    """Leave all of them, as programs do. Wait for the content of a file: the next one would take its place."""
    source, place = name.partition("-")[0], Path(container.rootfs) / f"srv/{name}-out"
    if source == "queue":
        types = [1, 2, (1 << 31) - 1]
        send_all(container, 0x1000 + number, [Sent(types[i % 3], body) for i, body in enumerate(messages)])
    elif source == "mqueue":
        in_ipc(container, lambda: fill(f"/{name}", messages))
    elif source == "socket":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as program:
            program.connect(str(place))
            for body in messages:
                program.send(body)
    elif source == "spool":
        put_into_spool(place, messages[:-1])
        with (place.parent / "part").open("wb") as file:
            file.write(messages[-1])
        os.rename(file.name, os.fsencode(place) + b"/" + b"\xff\n" * 127 + b"z")
    elif source == "file":
        for count, body in enumerate(messages, 1):
            place.write_bytes(body)
            wait_until(lambda: handled(daemon, name) == count, f"{name}: message {count} is handled")  # noqa: B023
    else:
        with place.open("ab") as log:
            for body in messages:
                log.write(body + b"\n" if source == "line" else struct.pack(">I", len(body)) + body)


def fill(name: str, messages: list[bytes]) -> None:
    """Send all into a POSIX queue."""
    with PosixQueue(name) as queue:
        for body in messages:
            queue.send(body)


def handled(daemon: Nsbridged, name: str) -> int:
    """Return how many messages were handed over or put aside."""
    found = flow(daemon, name)
    return int(found["delivered"] + found["dead"])


def cannot(source: str, sink: str, messages: list[bytes]) -> int:
    """Return how many of the messages the sink can never hand over."""
    if sink == "line":
        return sum(b"\n" in body for body in messages)
    if (source, sink) == ("queue", "mqueue"):
        return 1  # with the largest type, which is no priority
    if sink == "socket":
        return sum(len(body) > LONG // 2 for body in messages)  # wmem_default bounds a datagram
    return sum(len(body) > 8192 for body in messages) if sink in ("queue", "mqueue") else 0


@contextmanager
def readers(container: Any) -> Iterator[None]:
    """Have programs read from the sockets that sinks send to."""
    with ExitStack() as cleanup:
        for name in names():
            if name.endswith("-socket"):
                program = cleanup.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                program.bind(str(container.rootfs / f"srv/{name}-in"))
        yield


def test_every_source_gets_past_what_any_sink_cannot_take(tmp_path: Path, unshare_container: Factory) -> None:
    one, other = unshare_container(), unshare_container()
    with (
        readers(other),
        Nsbridged(tmp_path, routes(one.spec, other.spec), "dead = { max_bytes = 1000 }") as daemon,
    ):
        wait_until(lambda: {a["state"] for a in daemon.agents().values()} == {"RUNNING"}, "all run", 60)
        for number, name in enumerate(names()):
            leave(one, name, number, bodies(name.partition("-")[0], LONG), daemon)
        for name in names():
            source, _, sink = name.partition("-")
            messages = bodies(source, LONG)
            wait_until(lambda: handled(daemon, name) == len(messages), f"{name}: {flow(daemon, name)}", 60)  # noqa: B023
            assert (name, flow(daemon, name)["dead"]) == (name, cannot(source, sink, messages))
            wait_until(lambda: flow(daemon, name)["pending"] == 0, f"{name}: nothing is pending")  # noqa: B023
        agents = daemon.agents()
        assert {name for name, about in agents.items() if about["restarts"] or about["detail"]} == set(), agents


@pytest.mark.parametrize("sink", ["spool", "queue"])
def test_longest_message_of_all_passes(tmp_path: Path, unshare_container: Factory, sink: str) -> None:
    """64 MiB, which is also more than the default quota of dead letters: the only letter is kept whatever its size."""
    one, other = unshare_container(), unshare_container()
    text = f"[route.r]\n{agent('file', 'out', 'r', 0, one.spec)}{agent(sink, 'in', 'r', 0, other.spec)}"
    with Nsbridged(tmp_path, text) as daemon:
        daemon.wait_for("RUNNING")
        (one.rootfs / "srv/r-out").write_bytes(b"x" * MAX_MESSAGE)
        wait_until(lambda: handled(daemon, "r") == 1, "it is handled", 60)
        (one.rootfs / "srv/r-out").write_bytes(b"x")
        wait_until(lambda: handled(daemon, "r") == 2, "the next one too")
        assert flow(daemon, "r")["dead"] == (sink == "queue")
        assert [about["restarts"] for about in daemon.agents().values()] == [0, 0]
