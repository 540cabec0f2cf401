"""Callers with read permission who ask for all that they can delay neither agents nor other callers.

The kind: work whose amount a caller chooses, done by the loop that restarts agents: pipelined requests, long listings,
streams without end.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.control import connection
from nsbridge.supervisor.control import server as control
from tests.system.conftest import Factory
from tests.system.hostile_scene import healthy
from tests.system.nsbridged import Followed, Nsbridged, kill_and_wait
from tests.system.room import crowd

pytestmark = pytest.mark.alone  # it measures under its own load

LETTERS = 2400
CALLERS = 60
STRANGER = 51000
WITHIN = 2.0  # seconds, of a machine with nothing else to do: without those callers it is 0.1


def request(number: int, method: str, **params: object) -> bytes:
    return json.dumps({"id": number, "method": method, "params": params}).encode() + b"\n"


def put_aside(box: Path) -> None:
    """Make dead letters."""
    for number in range(1, LETTERS + 1):
        stem = f"{box}/{5:016x}-{number:020d}"
        note = {"epoch": 5, "seq": number, "type": 0, "bytes": 1, "where": "x", "why": "y" * 900, "time": 1}
        Path(f"{stem}.body").write_bytes(b"x")
        Path(f"{stem}.json").write_text(json.dumps(note))


def crowding(path: str) -> int:
    """Run as an unprivileged caller with read permission: ask for everything repeatedly, and read all answers."""
    os.setgroups([])
    os.setresgid(STRANGER, STRANGER, STRANGER)
    os.setresuid(STRANGER, STRANGER, STRANGER)
    ends = []
    for number in range(CALLERS):
        end = socket.socket(socket.AF_UNIX)
        end.connect(path)
        end.setblocking(False)
        ends.append(end)
        kind = number % 4
        follow = [request(n, "tail", follow=True, count=0) for n in range(connection.MAX_FOLLOWED)]
        many = [request(0, ("dead_list", "inspect", "status")[kind % 3], name="h", names=[])] * 600
        end.send(b"".join(follow) if kind == 3 else b"".join(many)[: 60 << 10])
    while True:
        for end in ends:
            try:
                while end.recv(1 << 20):
                    pass
            except BlockingIOError:
                pass
            except OSError:
                return 0
        time.sleep(0.005)  # the pace of one that asks without end


def _times(daemon: Nsbridged, followed: Followed) -> tuple[float, float, float]:
    """Return the seconds for a status, until a killed agent is back, for an inspect."""
    before = time.monotonic()
    pid = daemon.agents()["h:one"]["pid"]
    asked = time.monotonic()
    kill_and_wait(pid)
    followed.until("h:one", "RUNNING")
    back = time.monotonic()
    daemon.call("inspect", name="h:two")
    return asked - before, back - asked, time.monotonic() - back


@pytest.mark.timeout(180)
def test_callers_who_ask_without_end_delay_nobody(engine_base: Path, unshare_container: Factory) -> None:
    here = unshare_container()
    (here.rootfs / "srv/h").mkdir()
    directory = engine_base / "crowd"
    directory.mkdir()
    daemon = Nsbridged(directory, healthy(here.spec))
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace('control.sock" }', f'control.sock", read_group = "{STRANGER}" }}'))
    with daemon:
        daemon.wait_for("RUNNING")
        (directory / "state").chmod(0o755)
        put_aside(directory / "state/dead/h/two")
        followed = Followed(daemon)
        crowd_pid = os.fork()
        if crowd_pid == 0:
            try:
                os._exit(crowding(str(daemon.socket)))
            finally:
                os._exit(99)
        try:
            time.sleep(1)  # they are all at it; nothing depends on how far they are
            took = [_times(daemon, followed) for _ in range(5)]
            print("status, restart, inspect in s:", [tuple(round(value, 3) for value in row) for row in took])
            assert os.waitpid(crowd_pid, os.WNOHANG) == (0, 0), "it still asks"
            assert max(max(row) for row in took) < WITHIN * crowd(), took
        finally:
            os.kill(crowd_pid, 9)
            os.waitpid(crowd_pid, 0)


def test_streams_without_end_are_few(engine_base: Path, unshare_container: Factory) -> None:
    """Each costs a write for every line of the log: a connection has a few, and all together some; root has its own."""
    here = unshare_container()
    (here.rootfs / "srv/h").mkdir()
    directory = engine_base / "streams"
    directory.mkdir()
    with Nsbridged(directory, healthy(here.spec)) as daemon, socket.socket(socket.AF_UNIX) as end:
        daemon.wait_for("RUNNING")
        end.connect(str(daemon.socket))
        end.settimeout(20)
        for number in range(connection.MAX_FOLLOWED + 1):
            end.sendall(request(number, "events", follow=True, count=0))
        assert "can follow 4 streams at most" in json.loads(end.recv(4096))["error"]["message"]
        held = [end]
        with pytest.raises(NsbridgeError, match="as many streams as it can"):  # noqa: PT012
            while True:
                other = socket.socket(socket.AF_UNIX)
                other.connect(str(daemon.socket))
                other.settimeout(20)
                held.append(other)
                for number in range(connection.MAX_FOLLOWED):
                    other.sendall(request(number, "events", follow=True, count=1))
                    answer = json.loads(other.recv(1 << 16).splitlines()[0])
                    if "error" in answer:
                        raise NsbridgeError(answer["error"]["message"])
        assert len(held) == control.MAX_FOLLOWERS // connection.MAX_FOLLOWED + 1
        held[1].close()
        for other in held[2:]:
            other.close()
        daemon.call("tail", follow=False)


@pytest.mark.parametrize("method", ["dead_drop", "dead_retry"])
def test_route_may_go_while_its_letters_are_worked_on(
    engine_base: Path, unshare_container: Factory, method: str
) -> None:
    """They are worked on in slices, between which a reload takes the route away."""
    here = unshare_container()
    (here.rootfs / "srv/h").mkdir()
    directory = engine_base / method
    directory.mkdir()
    daemon = Nsbridged(directory, healthy(here.spec))
    routes = daemon.config.read_text()
    daemon.config.write_text(routes + healthy(here.spec).replace("route.h.", "route.g.").replace("/srv/h/", "/srv/g"))
    with daemon, socket.socket(socket.AF_UNIX) as end:
        daemon.wait_for("RUNNING")
        put_aside(directory / "state/dead/g/two")
        end.connect(str(daemon.socket))
        end.settimeout(20)
        daemon.config.write_text(routes)
        end.sendall(request(1, method, ids=["g"]))
        daemon.call("reload", wait=True)
        answer = json.loads(end.makefile("rb").readline())
        assert answer["id"] == 1
        assert set(daemon.agents()) == {"h:one", "h:two"}
