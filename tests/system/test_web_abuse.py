"""Many, slow and enormous clients of `nsbridge web`: the page recovers, and the daemon does not notice."""

from __future__ import annotations

import resource
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from nsbridge.supervisor.cli.web import guard
from tests import hasty_web as hasty
from tests.hasty_web import LIMIT
from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until
from tests.system.test_relay import route
from tests.system.test_web import CONFINED, readable
from tests.web_process import Web

pytestmark = pytest.mark.alone  # it measures under its own load

FLOOD = 500
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def enough_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def daemon(engine_base: Path, unshare_container: Factory, request: pytest.FixtureRequest) -> Iterator[Nsbridged]:
    directory = engine_base / request.node.name[:30]
    directory.mkdir()
    made = readable(directory, route(unshare_container().spec, unshare_container().spec))
    with made:
        made.wait_for("RUNNING")
        yield made


class HastyWeb(Web):
    """nsbridge web with shorter limits for clients."""

    command = (sys.executable, hasty.__file__)  # by its path: the working directory may be any


@pytest.fixture
def hasty_web(daemon: Nsbridged, enough_descriptors: None) -> Iterator[Web]:
    with HastyWeb(daemon.socket, through=CONFINED) as process:
        wait_until(lambda: process.get("/healthz").status == 200, "all is well")
        yield process


@pytest.fixture
def web(daemon: Nsbridged, enough_descriptors: None) -> Iterator[Web]:
    with Web(daemon.socket, through=CONFINED) as process:
        wait_until(lambda: process.get("/healthz").status == 200, "all is well")
        yield process


def connected(web: Web) -> socket.socket:
    return socket.create_connection(("127.0.0.1", web.port), timeout=20)


def undisturbed(daemon: Nsbridged, before: float) -> None:
    """Assert that the daemon answers at once, has spent no CPU time to speak of, and has no bug in its log."""
    began = time.monotonic()
    daemon.call("status")
    assert time.monotonic() - began < 0.5
    assert _cpu(daemon) - before < 1.0
    assert "bug" not in daemon.said()


def _cpu(daemon: Nsbridged) -> float:
    times = psutil.Process(daemon.pid).cpu_times()
    return times.user + times.system


def test_flood_of_connections_takes_no_place_from_others(daemon: Nsbridged, web: Web) -> None:
    """500 connect and send nothing, or a request byte by byte; a page is served all the while."""
    before = _cpu(daemon)
    with ExitStack() as cleanup:
        ends = [cleanup.enter_context(connected(web)) for _ in range(FLOOD)]
        slow = ends[-50:]
        for byte in REQUEST[:20]:
            for end in slow:
                try:
                    end.send(bytes([byte]))
                except OSError:
                    continue  # it was cut off
            began = time.monotonic()
            assert web.get("/healthz").status == 200
            assert time.monotonic() - began < 2
        assert web.get("/").status == 200
        open_now = [end for end in psutil.Process(web.pid).net_connections() if end.status == "ESTABLISHED"]
        assert len(open_now) <= guard.MOST + 1
        undisturbed(daemon, before)
    assert web.get("/healthz").status == 200


def test_request_that_does_not_end_is_cut_off(daemon: Nsbridged, hasty_web: Web) -> None:
    """However slowly it comes; and so is a connection without one."""
    web = hasty_web
    with connected(web) as slow, connected(web) as silent:
        began = time.monotonic()
        slow.settimeout(0.5)
        sent = 0
        while time.monotonic() - began < 2 * LIMIT:
            try:
                slow.send(b"X-Slow: 1\r\n" if sent else b"GET / HTTP/1.1\r\nHost: localhost\r\n")
                sent += 1
                if slow.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert LIMIT - 1 < time.monotonic() - began < LIMIT + 4
        silent.settimeout(5)
        assert _is_cut_off(silent)
    assert web.get("/healthz").status == 200


def test_enormous_request_is_refused_unread(daemon: Nsbridged, web: Web) -> None:
    """A body of 100 MB, with its length or in pieces, and a header without an end."""
    before, memory = _cpu(daemon), psutil.Process(web.pid).memory_info().rss
    chunk = bytes(1 << 20)
    for head in (b"Content-Length: 104857600\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n100000\r\n"):
        with connected(web) as end:
            assert _is_refused(end, b"POST /metrics HTTP/1.1\r\nHost: localhost\r\n" + head, chunk)
    with connected(web) as end:
        assert _is_refused(end, b"GET / HTTP/1.1\r\nX: ", chunk)
    assert psutil.Process(web.pid).memory_info().rss - memory < 32 << 20
    assert web.get("/healthz").status == 200
    undisturbed(daemon, before)


def _is_cut_off(end: socket.socket) -> bool:
    try:
        return end.recv(1) == b""
    except ConnectionResetError:
        return True


def _is_refused(end: socket.socket, head: bytes, chunk: bytes) -> bool:
    """True if it takes less than 50 MB."""
    sent = end.send(head)
    try:
        while sent < 50 << 20:
            sent += end.send(chunk)
    except OSError:
        return True
    return False


def test_clients_that_do_not_read_are_dropped(daemon: Nsbridged, hasty_web: Web) -> None:
    """They ask for pages without end and take none; a live stream that is not read is dropped too."""
    before, web = _cpu(daemon), hasty_web
    with ExitStack() as cleanup:
        for _ in range(12):  # each is answered until the kernel's buffers are full: some 600 times
            end = cleanup.enter_context(connected(web))
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            end.setblocking(False)
            try:
                end.send(b"GET /static/nsbridge.css HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
            except BlockingIOError:
                continue
        for _ in range(10):
            assert web.get("/healthz").status == 200
        process = psutil.Process(web.pid)
        wait_until(lambda: len(process.net_connections()) < 4, "they are cut off", LIMIT + 20)
        assert process.memory_info().rss < 200 << 20
    undisturbed(daemon, before)


def test_live_streams_are_bounded(daemon: Nsbridged, web: Web) -> None:
    with ExitStack() as cleanup:
        ends = [cleanup.enter_context(connected(web)) for _ in range(40)]
        for end in ends:
            end.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        heads = [end.recv(15) for end in ends]
        assert heads.count(b"HTTP/1.1 200 OK"[:15]) == 32
        assert heads.count(b"HTTP/1.1 503 Service"[:15]) == 8
        assert web.get("/").status == 200
    wait_until(lambda: _streams(web) == 200, "there is room again")


def _streams(web: Web) -> int:
    with web.connection() as connection:
        connection.request("GET", "/api/events")
        return connection.getresponse().status
