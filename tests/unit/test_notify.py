"""The reports to the service manager, over a real datagram socket; the whole daemon: tests/system/test_notify.py."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nsbridge.agents.loop import Loop
from nsbridge.supervisor import notify
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.log.events import Events
from nsbridge.supervisor.notify import Notifier, Wanted, summary, take_from

DEADLINE = 10.0  # seconds; longer means that it never happens


class Scene:
    """A notifier for the agents in `states`, and the manager's socket."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "manager")
        self.loop = Loop()
        self.events = Events()
        self.states = [("orders:web", State.RUNNING), ("orders:legacy", State.RUNNING)]
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(self.address)
        self.manager.setblocking(False)
        self._notifiers: list[Notifier] = []

    def notifier(self, watchdog: float = 0.0, address: str | None = None) -> Notifier:
        wanted = Wanted(self.address if address is None else address, watchdog)
        self._notifiers.append(Notifier(wanted, self.loop, self.events, lambda: self.states))
        return self._notifiers[-1]

    def next(self) -> dict[str, str]:
        """Run the loop until the manager has a datagram; return its assignments."""
        deadline = self.loop.now() + DEADLINE
        while True:
            try:
                lines = self.manager.recv(65536).decode().split("\n")
            except BlockingIOError:
                assert self.loop.now() < deadline, "the manager got no report"
                self.loop.run_once(0.05)
            else:
                return dict(line.split("=", 1) for line in lines)

    def pending(self) -> list[bytes]:
        """Return the datagrams that have arrived, without running the loop."""
        found = []
        while True:
            try:
                found.append(self.manager.recv(65536))
            except BlockingIOError:
                return found

    def fill(self) -> None:
        """Leave the manager no room for a datagram."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, suppress(BlockingIOError):
            other.setblocking(False)
            while True:
                other.sendto(b"of another", self.address)

    def close(self) -> None:
        for notifier in self._notifiers:
            notifier.close()
        self.manager.close()
        self.loop.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


def test_ready_names_main_process_and_state(scene: Scene) -> None:
    scene.notifier().ready()
    assert scene.next() == {"READY": "1", "MAINPID": str(os.getpid()), "STATUS": "2 of 2 agents running"}


def test_many_changes_at_once_are_one_sentence(scene: Scene) -> None:
    scene.notifier().ready()
    scene.next()
    for state in (State.STARTING, State.WAITING):
        scene.states[1] = ("orders:legacy", state)
        scene.events.state("orders:legacy", "RUNNING", state.value, "")
    assert scene.next() == {"STATUS": "1 of 2 agents running; orders:legacy waits for its container"}
    assert scene.pending() == []


def test_same_sentence_is_not_sent_twice(scene: Scene) -> None:
    notifier = scene.notifier()
    notifier.ready()
    scene.next()
    scene.events.state("orders:web", "RUNNING", "STARTING", "")
    scene.events.state("orders:web", "STARTING", "RUNNING", "")
    while notifier._due:
        scene.loop.run_once(0.5)
    assert scene.pending() == []


def test_reload_is_framed_by_reloading_and_ready(scene: Scene) -> None:
    scene.notifier().ready()
    scene.next()
    scene.events.reload("2 unchanged")
    reloading = scene.next()
    assert (reloading["RELOADING"], reloading["STATUS"]) == ("1", "2 unchanged")
    assert int(reloading["MONOTONIC_USEC"]) > 0
    assert scene.next() == {"READY": "1"}
    assert scene.next() == {"STATUS": "2 of 2 agents running"}, "the sentence about the reload is replaced"


def test_newline_in_a_sentence_makes_no_assignment(scene: Scene) -> None:
    scene.states = [("a\nSTOPPING=1", State.FATAL)]
    scene.notifier().ready()
    assert scene.next()["STATUS"] == "0 of 1 agents running; a STOPPING=1 needs a person"


def test_stopping_is_reported_at_once(scene: Scene) -> None:
    scene.notifier()
    scene.events.daemon("started")
    scene.events.daemon("stopping")
    assert scene.pending() == [b"STOPPING=1"]


def test_watchdog_is_fed_only_after_ready(scene: Scene) -> None:
    notifier = scene.notifier(watchdog=0.05)
    scene.loop.run_once(0.1)
    assert scene.pending() == []
    notifier.ready()
    assert scene.next()["READY"] == "1"
    assert [scene.next() for _ in range(3)] == [{"WATCHDOG": "1"}] * 3


def test_full_manager_gets_everything_later_in_order(scene: Scene) -> None:
    """Nothing waits: sendto is refused while the manager's queue is full."""
    notifier = scene.notifier()
    scene.fill()
    notifier.ready()
    scene.events.daemon("stopping")
    assert set(scene.pending()) == {b"of another"}
    assert scene.next()["READY"] == "1"
    assert scene.next() == {"STOPPING": "1"}


def test_manager_that_never_reads_costs_a_bounded_queue(scene: Scene) -> None:
    """The oldest datagrams are given up; the newest is what counts."""
    notifier = scene.notifier()
    scene.fill()
    for number in range(100):
        notifier._notify(f"STATUS={number}")
    scene.pending()
    assert [scene.next()["STATUS"] for _ in range(notify._UNSENT)] == [str(number) for number in range(84, 100)]
    assert scene.pending() == []


def test_manager_that_has_gone_is_no_error(scene: Scene) -> None:
    scene.manager.close()
    notifier = scene.notifier()
    notifier.ready()
    scene.events.daemon("stopping")
    assert not notifier._unsent


def test_nothing_is_sent_after_close(scene: Scene) -> None:
    notifier = scene.notifier()
    notifier.close()
    notifier.close()
    scene.events.daemon("stopping")
    assert scene.pending() == []


def test_without_an_address_there_is_no_socket(scene: Scene) -> None:
    notifier = scene.notifier(watchdog=0.01, address="")
    notifier.ready()
    scene.events.state("orders:web", "RUNNING", "WAITING", "")
    scene.loop.run_once(0.05)
    assert notifier._socket is None
    assert not notifier._due
    assert scene.pending() == []


def test_abstract_address_begins_with_nul(scene: Scene) -> None:
    name = f"nsbridge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0{name}")
        abstract.settimeout(DEADLINE)
        scene.notifier(address=f"@{name}").ready()
        assert abstract.recv(4096).startswith(b"READY=1\n")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, Wanted()),
        ({"NOTIFY_SOCKET": "/run/x"}, Wanted("/run/x")),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, Wanted()),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "3000000"}, Wanted("@x", 3.0)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, Wanted("@x", 3.0)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, Wanted("@x")),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "-3"}, Wanted("@x")),
    ],
)
def test_what_the_environment_says_is_taken_out_of_it(given: dict[str, str], wanted: Wanted) -> None:
    environment = given | {"PATH": "/bin"}
    assert take_from(environment, 7) == wanted
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("states", "sentence"),
    [
        ([], "0 of 0 agents running"),
        ([State.RUNNING] * 2, "2 of 2 agents running"),
        ([State.RUNNING, State.WAITING], "1 of 2 agents running; a1 waits for its container"),
        (
            [State.FATAL, State.BACKOFF, State.STOPPED, State.STARTING, State.STOPPING],
            "0 of 5 agents running; a0 needs a person, a1 has died and is tried again, a2 is stopped, and 2 more",
        ),
    ],
)
def test_the_sentence_names_what_does_not_run_and_why(states: list[State], sentence: str) -> None:
    assert summary([(f"a{number}", state) for number, state in enumerate(states)]) == sentence
