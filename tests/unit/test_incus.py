"""The API of Incus and LXD: what is asked, whose answers are not taken, and events over a websocket."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import engine_events, engines, websocket
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.engines.incus import Incus, parse_lifecycle
from nsbridge.supervisor.containers.identity import ContainerRefused, NotRunning
from tests.unit.http_fake import FakeEngine, Reply

INSTANCE = "/1.0/instances/web?project=default"
STATE = "/1.0/instances/web/state?project=default"
EVENTS = "/1.0/events?type=lifecycle&all-projects=true"
STARTED = (  # as LXD 5.0.2 sends it
    b'{"type":"lifecycle","timestamp":"2026-11-29T06:32:23.404961089Z","metadata":{"action":"instance-started",'
    b'"source":"/1.0/instances/web","requestor":{"username":"root","protocol":"unix","address":"@"}},'
    b'"location":"none","project":"default"}'
)
Fake = Callable[..., FakeEngine]


def sync(metadata: object) -> bytes:
    return json.dumps({"type": "sync", "status": "Success", "status_code": 200, "metadata": metadata}).encode()


def instance(**fields: object) -> bytes:
    usual = {"name": "web", "type": "container", "status": "Running", "location": "none", "project": "default"}
    return sync(usual | fields)


def state(pid: object = None, status: object = "Running") -> bytes:
    return sync({"status": status, "status_code": 103, "pid": os.getpid() if pid is None else pid})


@pytest.fixture
def incus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """Yield a function that makes the engine, with its replies by target."""
    made: list[FakeEngine] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INCUS_SOCKET", "incus.sock")

    def make(replies: dict[str, Reply]) -> FakeEngine:
        made.append(FakeEngine(Path("incus.sock"), replies))
        return made[0]

    yield make
    for each in made:
        each.close()


def locate(name: str = "web") -> int:
    return containers.locate(Container(engines.incus.KIND, name)).pid


def test_running_container_is_found(incus: Fake) -> None:
    fake = incus({INSTANCE: instance(), STATE: state()})
    assert locate() == os.getpid()
    assert fake.asked == [INSTANCE, STATE, STATE]


def test_container_of_another_project_is_found(incus: Fake) -> None:
    incus(
        {
            "/1.0/instances/web?project=shop": instance(project="shop"),
            "/1.0/instances/web/state?project=shop": state(),
        }
    )
    assert locate("shop/web") == os.getpid()
    with pytest.raises(NotRunning, match='container "web" is not known to incus'):
        locate()


def test_container_on_another_member_of_the_cluster_is_not_here(incus: Fake) -> None:
    """The engine answers for it with a pid of that member, which is any process here."""
    fake = incus(
        {
            INSTANCE: instance(location="node2"),
            STATE: state(),
            "/1.0": sync({"environment": {"server_name": "node1"}}),
        }
    )
    with pytest.raises(NotRunning, match='on the cluster\'s member "node2", not on this one'):
        locate()
    assert STATE not in fake.asked
    fake.replies[INSTANCE] = instance(location="node1")
    assert locate() == os.getpid()


def test_virtual_machine_is_refused(incus: Fake) -> None:
    incus({INSTANCE: instance(type="virtual-machine"), STATE: state()})
    with pytest.raises(ContainerRefused, match="is a virtual-machine: it has no namespaces to join"):
        locate()


@pytest.mark.parametrize(("status", "pid"), [("Stopped", 0), ("Stopped", -1), ("Error", 7), ("Starting", 7)])
def test_container_that_does_not_run_is_waited_for(incus: Fake, status: str, pid: int) -> None:
    incus({INSTANCE: instance(), STATE: state(pid, status)})
    with pytest.raises(NotRunning, match=f"is {status.lower()}, not running"):
        locate()


@pytest.mark.parametrize(
    "reply",
    [
        b"\x00",
        b"[]",
        b'{"type":"sync"}',
        b"[" * 100_000,
        sync(None),
        sync({"name": "web"}),
        sync({"name": 1, "type": "container", "status": "Running"}),
    ],
)
def test_answer_of_something_else_is_refused_in_one_line(incus: Fake, reply: bytes) -> None:
    incus({INSTANCE: reply, STATE: state()})
    with pytest.raises((ContainerRefused, NotRunning)) as refused:
        locate()
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("pid", [True, "7", 1 << 40, None, [7]])
def test_pid_that_is_none_is_refused(incus: Fake, pid: object) -> None:
    incus({INSTANCE: instance(), STATE: sync({"status": "Running", "pid": pid})})
    with pytest.raises((ContainerRefused, NotRunning)):
        locate()


@pytest.mark.parametrize("name", ["a b", "../x", "a/b/c", "-a", "a?x=1", "é", "a" * 64, "web/"])
def test_name_that_could_mean_something_else_is_no_name(name: str) -> None:
    with pytest.raises(ContainerRefused, match="cannot have a container"):
        locate(name)


def test_listing_has_containers_of_all_projects(incus: Fake) -> None:
    known = [
        {"name": "web", "type": "container", "status": "Running", "location": "none", "project": "default"},
        {"name": "db", "type": "container", "status": "Stopped", "location": "none", "project": "shop"},
        {"name": "vm", "type": "virtual-machine", "status": "Running", "location": "none", "project": "default"},
        {"name": "far", "type": "container", "status": "Running", "location": "node2", "project": "default"},
    ]
    incus(
        {
            "/1.0": sync({"environment": {"server_name": "node1"}}),
            "/1.0/instances?recursion=1&all-projects=true": sync(known),
            STATE: state(),
            "/1.0/instances/db/state?project=shop": state(0, "Stopped"),
        }
    )
    assert [(row.name, row.pid, row.state) for row in Incus().listed()] == [
        ("incus:shop/db", 0, "stopped"),
        ("incus:web", os.getpid(), "running"),
    ]


def test_socket_is_that_of_the_engines_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value, path in (
        ("LXD_DIR", "/nowhere/d", "/nowhere/d/unix.socket"),
        ("LXD_SOCKET", "/nowhere/s", "/nowhere/s"),
        ("INCUS_DIR", "/nowhere/i", "/nowhere/i/unix.socket"),
        ("INCUS_SOCKET", "/nowhere/is", "/nowhere/is"),
    ):
        monkeypatch.setenv(variable, value)
        with pytest.raises(NotRunning, match=f"engine socket {re.escape(path)} is not there"):
            locate()


# -- events


def upgrading(*frames: bytes) -> Reply:
    """Return a reply that upgrades as a server does, and sends these bytes."""

    def reply(caller: socket.socket, request: bytes) -> None:
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
        assert key is not None
        answer = websocket.accepted(key[1].decode())
        head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        caller.sendall(f"{head}Sec-WebSocket-Accept: {answer}\r\n\r\n".encode() + b"".join(frames))

    return reply


def frame(payload: bytes, opcode: int = 1, *, final: bool = True) -> bytes:
    size = len(payload)
    length = (
        bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 1 << 16 else b"\x7f" + size.to_bytes(8)
    )
    return bytes([opcode | (0x80 if final else 0)]) + length + payload


def followed(incus: Fake, *frames: bytes) -> list[str]:
    incus({EVENTS: upgrading(*frames)})
    reader, writer = os.pipe()
    assert engine_events.run(Incus().follow, writer) == 1
    os.close(writer)
    with os.fdopen(reader, "rb") as lines:
        return lines.read().decode().splitlines()


def test_starts_are_reported_by_name(incus: Fake) -> None:
    other = STARTED.replace(b'"project":"default"', b'"project":"shop"')
    stopped = STARTED.replace(b"instance-started", b"instance-stopped")
    said = followed(
        incus,
        frame(stopped),
        frame(STARTED[:40], final=False),
        frame(STARTED[40:], 0),
        frame(other),
        frame(b"keepalive", 9),  # last: the fake closes, and a client that cannot answer it reads no more
    )
    assert said[:3] == ["+", "- web", "?"]
    assert said[3].startswith("! engine socket incus.sock ended its events")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff" * 20,
        b"HTTP/1.1 400 no\r\n\r\n",
        frame(b"[]"),
        frame(b"\xff\xfe"),
        b"\x81\x7f" + (1 << 40).to_bytes(8),
        frame(b"x" * 70_000, final=False) * 16,
        frame(STARTED)[:20],
        b"\x81\x7e\x00",
        frame(b"", 8),
    ],
)
def test_garbage_ends_the_events_in_one_line(incus: Fake, garbage: bytes) -> None:
    said = followed(incus, frame(STARTED), garbage)
    assert said[:2] == ["+", "- web"]
    assert len(said) == 3
    assert said[2].startswith("! engine socket incus.sock")
    assert said[2].isprintable()


def test_server_without_websocket_is_reported(incus: Fake) -> None:
    incus({EVENTS: sync({})})
    reader, writer = os.pipe()
    engine_events.run(Incus().follow, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as lines:
        assert lines.read() == b"! engine socket incus.sock has no websocket for events\n"


@pytest.mark.parametrize("action", ["instance-stopped", "instance-paused", "image-created", "x" * 1000])
def test_other_events_are_no_start(action: str) -> None:
    assert parse_lifecycle(STARTED.replace(b"instance-started", action.encode())) is None


def test_ping_is_answered_with_a_masked_pong() -> None:
    """RFC 6455, 5.3: a server closes the connection on a frame of a client that is not masked."""

    class Bytes:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def read(self, size: int, /) -> bytes:
            taken, self.content = self.content[:size], self.content[size:]
            return taken

    sent: list[bytes] = []
    assert list(websocket.messages(Bytes(frame(b"keepalive", 9) + frame(b"x")), sent.append)) == [b"x"]
    (pong,) = sent
    assert pong[:2] == bytes([0x8A, 0x89])
    mask = pong[2:6]
    assert bytes(byte ^ mask[at % 4] for at, byte in enumerate(pong[6:])) == b"keepalive"
