"""Asking an engine that is missing, stuck, slow, foreign or hostile ends in time and with a readable line."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.schema import Container
from nsbridge.supervisor.containers import engines, identity
from nsbridge.supervisor.containers import locate as containers
from nsbridge.supervisor.containers.deadline import TIME_LIMIT
from nsbridge.supervisor.containers.identity import ContainerRefused, NotRunning

SLACK = 5.0  # seconds, on a machine that does other work too
WEB = Container(engines.docker.KIND, "web")
PODMAN_WEB = Container(engines.podman.KIND, "web")
Answer = Callable[[socket.socket], object]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], None]]:
    """Yield a function that sets the answer of a listening socket, which DOCKER_HOST names."""
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)
    listener.bind("api.sock")
    listener.listen()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/api.sock")
    threads = []

    def serve(answer: Answer) -> None:
        def run() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as caller, suppress(OSError):
                        answer(caller)

        threads.append(threading.Thread(target=run))
        threads[0].start()

    yield serve
    listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    listener.close()


def answering(body: bytes, status: str = "200 OK") -> Answer:
    def answer(caller: socket.socket) -> None:
        while caller.recv(4096):
            caller.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    return answer


def container(**state: object) -> bytes:
    usual = {"Status": "running", "Pid": os.getpid(), "StartedAt": "2026-11-23T19:25:12.29Z"}
    return json.dumps({"Id": "5203" * 16, "Name": "/web", "State": usual | state}).encode()


def test_a_missing_socket_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(NotRunning, match=r"none\.sock is not there: is the docker service running"):
        containers.locate(WEB)


def test_a_socket_that_nobody_listens_at_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("api.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/api.sock")
    with pytest.raises(NotRunning, match=r"does not answer \(Connection refused\)"):
        containers.locate(WEB)


@pytest.mark.parametrize("host", ["tcp://10.0.0.1:2375", "ssh://x", "unix://relative", "/var/run/docker.sock"])
def test_an_engine_of_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(ContainerRefused, match="only unix:///PATH"):
        containers.locate(WEB)


def test_an_engine_that_never_answers_costs_the_time_limit(engine: Callable[[Answer], None]) -> None:
    began = time.monotonic()  # nobody serves: the kernel accepts into the backlog
    with pytest.raises(NotRunning, match="does not answer"):
        containers.locate(WEB)
    assert TIME_LIMIT <= time.monotonic() - began < TIME_LIMIT + SLACK


def test_an_engine_that_answers_in_drops_costs_the_time_limit(engine: Callable[[Answer], None]) -> None:
    def drip(caller: socket.socket) -> None:
        caller.recv(4096)
        caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:  # until the caller is gone
            caller.sendall(b" ")
            time.sleep(0.05)  # the pace of an engine that answers drop by drop

    engine(drip)
    began = time.monotonic()
    with pytest.raises(NotRunning, match="does not answer"):
        containers.locate(WEB)
    assert time.monotonic() - began < TIME_LIMIT + SLACK


def test_an_endless_answer_is_cut(engine: Callable[[Answer], None]) -> None:
    def flood(caller: socket.socket) -> None:
        caller.recv(4096)
        caller.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            caller.sendall(b" " * 65536)

    engine(flood)
    with pytest.raises(ContainerRefused, match="longer than"):
        containers.locate(WEB)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (answering(b"{}"), ContainerRefused, "not a docker engine"),
        (answering(b"[" * 100_000), ContainerRefused, "not a docker engine"),
        (answering(container(Pid="1")), ContainerRefused, "not a docker engine"),
        (answering(container(Pid=True)), ContainerRefused, "not a docker engine"),
        (answering(b'{"message":"No such container"}', "404 Not Found"), NotRunning, "not known to docker"),
        (answering(b"\x1b[2J\xff", "500 Oops"), NotRunning, r'HTTP status 500: "\\x1b\[2J\\\\xff"'),
        (answering(container(Status="\x1b[2J", Pid=0)), NotRunning, r"is \\x1b\[2J, not running"),
        (answering(container(Status="restarting", Pid=0)), NotRunning, "is restarting, not running"),
        (answering(container(Pid=4194305)), NotRunning, "there is no process"),
        (lambda caller: caller.recv(4096) and caller.sendall(b"220 smtp ready\r\n"), NotRunning, "other than HTTP"),
        (lambda caller: caller.close(), NotRunning, "does not answer"),
    ],
)
def test_a_strange_answer_becomes_a_readable_line(
    engine: Callable[[Answer], None], answer: Answer, error: type[Exception], said: str
) -> None:
    engine(answer)
    with pytest.raises(error, match=said) as raised:
        containers.locate(WEB)
    assert str(raised.value).isprintable()


def test_a_good_answer_leads_to_the_process(engine: Callable[[Answer], None]) -> None:
    engine(answering(container()))
    assert containers.locate(WEB) == identity.found_by_pid(os.getpid())


def test_a_container_that_changes_between_requests_is_not_taken(engine: Callable[[Answer], None]) -> None:
    answers = [container(StartedAt=f"{n}") for n in range(2)]

    def answer(caller: socket.socket) -> None:
        while caller.recv(4096):
            body = answers.pop()
            caller.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    engine(answer)
    with pytest.raises(NotRunning, match="just stopping or starting"):
        containers.locate(WEB)


def test_an_id_that_begins_like_the_name_is_not_taken(engine: Callable[[Answer], None]) -> None:
    engine(answering(container()))
    with pytest.raises(NotRunning, match="not known"):
        containers.locate(Container(engines.docker.KIND, "52"))
    assert containers.locate(Container(engines.docker.KIND, "520352035203")).pid == os.getpid()


@pytest.mark.parametrize("name", ["", "-f", "a/b", "a b", "../x", "a\n", "x" * 300])
@pytest.mark.parametrize("kind", [engines.docker.KIND, engines.podman.KIND])
def test_a_name_that_no_engine_would_give_is_not_asked_for(kind: ContainerKind, name: str) -> None:
    with pytest.raises(ContainerRefused, match="cannot have a container"):
        containers.locate(Container(kind, name))


@pytest.fixture
def podman_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script in the place of podman, and no socket."""
    monkeypatch.delenv("CONTAINER_HOST", raising=False)
    monkeypatch.setattr(engines.podman, "SOCKET", str(tmp_path / "none.sock"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def install(script: str) -> None:
        program = tmp_path / "podman"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)

    return install


def test_a_stuck_podman_command_is_killed_after_the_limit(podman_program: Callable[[str], None]) -> None:
    podman_program("exec sleep 1000")
    began = time.monotonic()
    with pytest.raises(NotRunning, match="podman does not answer"):
        containers.locate(PODMAN_WEB)
    assert time.monotonic() - began < TIME_LIMIT + SLACK


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("exec yes", NotRunning, "says more than|does not answer"),
        ("echo {}", ContainerRefused, "is not understood"),
        ("echo 'Error: no such container web' >&2; exit 125", NotRunning, "not known to podman"),
        (r"printf 'warning\nbad \033[2J' >&2; exit 125", NotRunning, r'failed with status 125: "bad \\x1b'),
    ],
)
def test_a_failing_podman_command_becomes_a_readable_line(
    podman_program: Callable[[str], None], script: str, error: type[Exception], said: str
) -> None:
    podman_program(script)
    with pytest.raises(error, match=said) as raised:
        containers.locate(PODMAN_WEB)
    assert str(raised.value).isprintable()


def test_a_missing_podman_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTAINER_HOST", raising=False)
    monkeypatch.setattr(engines.podman, "SOCKET", str(tmp_path / "none.sock"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotRunning, match=r"none\.sock is not there"):
        containers.locate(PODMAN_WEB)
    assert list(engines.podman.Podman().listed()) == []
