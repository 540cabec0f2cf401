"""Unix sockets of real containers: programs that send, programs that read, what hostile hands do, and SIGKILL.

`python -m tests.system.socket_losses` measures what a kill loses.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system import socket_losses
from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.faults import says, says_nothing
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until
from tests.system.traffic import Receiver, visible, wait_for_files

CLIENTS = 100
USER = 1000


def table(kind: str, side: str) -> str:
    return f'socket = {{ {side} = "/srv/s", type = "{kind}" }}'


@contextmanager
def serve(tmp_path: Path, one: EngineContainer, other: EngineContainer, out: str, in_: str) -> Iterator[Nsbridged]:
    """Serve one direction."""
    routes = (
        f'[route.r]\n[route.r.agent.a]\ncontainer = "{one.spec}"\n{out}\n'
        f'[route.r.agent.b]\ncontainer = "{other.spec}"\n{in_}\n'
    )
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        yield daemon


SPOOL = 'spool = { in = "/srv/in" }'


def client(container: EngineContainer, kind: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket_losses.KINDS[kind])
    made.settimeout(10)
    made.connect(str(container.rootfs / "srv/s"))
    return made


def bodies(container: EngineContainer, count: int) -> list[bytes]:
    return [file.read_bytes() for file in wait_for_files(container.rootfs / "srv/in", count)]


def test_lines_of_logger_arrive_in_a_queue_in_order(tmp_path: Path, unshare_container: Factory) -> None:
    """Each call of logger(1) is a program of its own, as in a container whose /dev/log is the socket."""
    logger = shutil.which("logger")
    assert logger is not None, "logger is in bsdutils, which every Debian has"
    one, other = unshare_container(), unshare_container()
    out = 'socket = { out = "/srv/s", mode = "0666" }'
    queue = "queue = { in = { key = 7 }, create = true }"
    with serve(tmp_path, one, other, out, queue), Receiver(other, 7, 40) as receiver:
        for number in range(40):
            subprocess.run([logger, "-u", one.rootfs / "srv/s", "-t", "orders", f"line {number}"], check=True)
        got = receiver.messages()
    assert [message.body.rsplit(b": ", 1)[1] for message in got] == [b"line %d" % number for number in range(40)]
    assert all(message.body.startswith(b"<13>") and b"orders" in message.body for message in got)


def test_a_hundred_clients_of_a_stream(tmp_path: Path, unshare_container: Factory) -> None:
    """Each one's lines arrive in its order; at the end every descriptor is closed."""
    one, other = unshare_container(), unshare_container()
    with serve(tmp_path, one, other, table("stream", "out"), SPOOL) as daemon:
        clients = [client(one, "stream") for _ in range(CLIENTS)]
        for line in range(5):
            for number, program in enumerate(clients):
                program.send(b"%03d %d\n" % (number, line))
        for program in clients:
            program.close()
        got = bodies(other, 5 * CLIENTS)
        for number in range(CLIENTS):
            mine = [body for body in got if body.startswith(b"%03d " % number)]
            assert mine == [b"%03d %d" % (number, line) for line in range(5)]
        pid = daemon.agents()["r:a"]["pid"]
        wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) < 30, "its connections are closed")


@pytest.mark.parametrize("kind", ["datagram", "stream"])
def test_back_pressure_reaches_the_programs(tmp_path: Path, unshare_container: Factory, kind: str) -> None:
    """The program across does not read: the sender is held back, and loses nothing."""
    one, other = unshare_container(), unshare_container()
    reader = socket.socket(socket.AF_UNIX, socket_losses.KINDS[kind])
    with reader, serve(tmp_path, one, other, table(kind, "out"), table(kind, "in")) as daemon:
        reader.bind(str(other.rootfs / "srv/s"))
        if kind == "stream":
            reader.listen()
        says_nothing(daemon, "r:b")
        sent = 0
        with client(one, kind) as program:
            program.settimeout(1)
            try:
                while True:
                    program.send(b"%07d%s\n" % (sent, b"." * 992))
                    sent += 1
            except TimeoutError:
                pass
            assert sent > 100
            says(daemon, "r:b", "is full: its program does not read")
        data = b""
        with reader.accept()[0] if kind == "stream" else reader as connection:
            connection.settimeout(10)
            while len(data) < sent * 1000:
                data += connection.recv(1 << 20)
        assert [int(data[at : at + 7]) for at in range(0, sent * 1000, 1000)] == list(range(sent))


def test_reader_that_restarts_gets_the_rest(tmp_path: Path, unshare_container: Factory) -> None:
    one, other = unshare_container(), unshare_container()
    place = other.rootfs / "srv/s"
    with serve(tmp_path, one, other, table("datagram", "out"), table("seqpacket", "in")) as daemon:
        says(daemon, "r:b", "no socket /srv/s in pid:")
        with client(one, "datagram") as program:
            for number in range(3):
                program.send(b"%d" % number)
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as reader:
                    reader.bind(str(place))
                    reader.listen()
                    reader.settimeout(10)
                    with reader.accept()[0] as connection:
                        connection.settimeout(10)
                        assert connection.recv(100) == b"%d" % number
                place.unlink()
                says(daemon, "r:b", "/srv/s")


def test_socket_that_is_removed_is_made_again(tmp_path: Path, unshare_container: Factory) -> None:
    """The supervisor makes a new socket; what was sent to the old one has arrived."""
    one, other = unshare_container(), unshare_container()
    place = one.rootfs / "srv/s"
    with serve(tmp_path, one, other, table("datagram", "out"), SPOOL) as daemon:
        with client(one, "datagram") as program:
            program.send(b"1")
            before = place.lstat().st_ino
            place.unlink()
            program.send(b"2")
            wait_until(lambda: place.exists() and place.lstat().st_ino != before, "a new one is there")
        with client(one, "datagram") as program:
            program.send(b"3")
        assert bodies(other, 3) == [b"1", b"2", b"3"]
        assert "was removed or replaced" in daemon.said()


def test_socket_of_another_program_is_left_alone(tmp_path: Path, unshare_container: Factory) -> None:
    """A stale one is replaced, as after a kill of everything."""
    one, other = unshare_container(), unshare_container()
    with serve(tmp_path, one, other, table("datagram", "out"), SPOOL) as daemon:
        daemon.kill()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as live:
            (one.rootfs / "srv/s").unlink()
            live.bind(str(one.rootfs / "srv/s"))
            daemon.start()
            says(daemon, "r:a", "/srv/s is a socket that a program uses")
        says_nothing(daemon, "r:a")
        with client(one, "datagram") as program:
            program.send(b"1")
        assert bodies(other, 1) == [b"1"]


@pytest.mark.alone  # it makes the load itself
def test_kills_lose_and_repeat_no_datagram(tmp_path: Path, unshare_container: Factory) -> None:
    """The supervisor holds the socket, and the kernel counts what was received."""
    pair = [unshare_container(), unshare_container()]
    loss = socket_losses.measure("datagram", 15, pair=pair, directory=tmp_path)
    assert (loss.lost, loss.repeated) == (0, 0)
    assert loss.sent > 15 * 20
    assert visible(pair[1].rootfs / "srv/in") == []


def test_container_that_comes_back_gets_a_new_socket(tmp_path: Path, runc_container: Factory) -> None:
    """The old one is dropped with its container: bound, it would keep the file system alive."""
    one, other = runc_container(), runc_container()
    with serve(tmp_path, one, other, table("datagram", "out"), SPOOL) as daemon:
        for number in range(2):
            with client(one, "datagram") as program:
                program.send(b"%d" % number)
            assert bodies(other, number + 1)[-1] == b"%d" % number
            if not number:
                assert len(bound_sockets_of(daemon.pid)) == 1
                one.stop()
                daemon.wait_for("WAITING", "r:a")
                assert bound_sockets_of(daemon.pid) == set()
                one.start()
                daemon.wait_for("RUNNING")


def bound_sockets_of(pid: int) -> set[str]:
    """Return the inodes of sockets that an agent has bound, and that the process has open."""
    lines = Path(f"/proc/{pid}/net/unix").read_text(encoding="utf-8", errors="replace").splitlines()
    bound = {f"socket:[{line.split()[6]}]" for line in lines if ".nsbridge-" in line}
    return bound & {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
