"""An engine that does not speak as it should delays only what waits for it: other routes run on, memory is bounded."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until
from tests.system.test_arrivals import waiting
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent

MESSAGES = 100
MEMORY = 64 << 20  # bytes that no process of the daemon may have
SHARE = 0.6  # of a core that the supervisor may use
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"  # until the connection ends
_EVENT = json.dumps({"Action": "start", "Actor": {"ID": "5203" * 16, "Attributes": {"name": "%s"}}}).encode() + b"\n"

Speak = Callable[[socket.socket], None]


def silence(caller: socket.socket) -> None:
    """Accept the call in the kernel, and do nothing more."""


def garbage(caller: socket.socket) -> None:
    caller.sendall(b"\x16\x03\x01 220 welcome\r\n" * 100)


def garbage_as_events(caller: socket.socket) -> None:
    caller.sendall(_HEAD + b"\x1b[2J{}\n[]\n" * 1000)


def endless_line(caller: socket.socket) -> None:
    caller.sendall(_HEAD)
    while True:
        caller.sendall(b'{"Actor": "' * 6000)


def endless_events(caller: socket.socket) -> None:
    """Send events without end, for the awaited container and for others."""
    caller.sendall(_HEAD)
    while True:
        caller.sendall((_EVENT % b"ghost" + _EVENT % b"other") * 200)


class Engine:
    """Listens where dockerd would: knows no container, and has such events. A silent one answers nothing at all."""

    def __init__(self, path: Path, speak: Speak) -> None:
        self.calls = self.watched = 0
        self._speak = speak
        self._callers: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(100)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for caller in self._callers:
            with suppress(OSError):
                caller.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                caller = self._listener.accept()[0]
                self.calls += 1
                self._callers.append(caller)
                self._threads.append(threading.Thread(target=self._serve, args=[caller]))
                self._threads[-1].start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, suppress(OSError):
            while request := caller.recv(4096):
                if b"/events" in request:
                    self.watched += 1
                    self._speak(caller)
                    if self._speak is not silence:
                        return
                elif self._speak is not silence:
                    caller.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")


@pytest.fixture
def engine(engine_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Speak], Engine]]:
    made: list[Engine] = []
    path = engine_base / "fake.sock"

    def make(speak: Speak) -> Engine:
        made.append(Engine(path, speak))
        return made[0]

    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{engine_base}/none.sock")
    yield make
    for each in made:
        each.close()
    path.unlink()


@pytest.mark.parametrize("speak", [silence, garbage, garbage_as_events, endless_line, endless_events])
def test_an_engine_that_speaks_nonsense_disturbs_nobody_else(
    tmp_path: Path,
    engine: Callable[[Speak], Engine],
    unshare_container: Factory,
    speak: Speak,
    capfd: pytest.CaptureFixture[str],
) -> None:
    web, legacy = unshare_container(), unshare_container()
    fake = engine(speak)
    capfd.readouterr()
    routes = route(web.spec, legacy.spec) + waiting("docker:ghost", "docker:other")
    routes += waiting("compose:shop/ghost", "docker-label:role=other", "l")
    with Nsbridged(tmp_path, routes) as daemon, Receiver(legacy, 0x51, MESSAGES) as receiver:
        daemon.wait_for("RUNNING", "r:files", "r:queue")
        wait_until(lambda: fake.calls >= 4 and fake.watched, "the engine is asked and watched")
        supervisor = psutil.Process(daemon.pid)
        for number in range(MESSAGES):
            (web.rootfs / f"srv/out/{number}").write_bytes(b"%d" % number)
            wait_until(partial(_is_delivered, daemon, number + 1), "a message is delivered", 5.0)
        assert receiver.messages() == [Sent(7, b"%d" % number) for number in range(MESSAGES)]
        began, used = time.monotonic(), sum(supervisor.cpu_times()[:2])
        time.sleep(1.5)  # in which nobody asks it anything
        share = (sum(supervisor.cpu_times()[:2]) - used) / (time.monotonic() - began)
        sizes = [supervisor.memory_info().rss]
        for child in supervisor.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # a question that has been answered
                sizes.append(child.memory_info().rss)
        print(f"{speak.__name__}: {share:.0%} of a core, {fake.calls} calls, at most {max(sizes) >> 20} MB")
        assert max(sizes) < MEMORY
        assert share < SHARE
        assert {agent["state"] for agent in daemon.agents().values()} == {"RUNNING", "WAITING"}
        assert "Error" not in capfd.readouterr().err, "a child met a bug"


def _is_delivered(daemon: Nsbridged, count: int) -> bool:
    return bool(daemon.flow("r:files")["delivered"] >= count)
