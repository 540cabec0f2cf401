"""The key of a queue follows its file: what a look finds, and a look that hangs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nsbridge.agents.confinement import entry
from nsbridge.agents.endpoints.queue import kind
from nsbridge.agents.endpoints.queue.config import FtokKey, QueueEndpoint, QueueIn, QueueOut
from nsbridge.agents.endpoints.queue.queue import numeric_key
from nsbridge.agents.fork import Child
from nsbridge.agents.loop import Loop
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.routes import keywatch
from nsbridge.supervisor.routes.keywatch import KeyWatch

LIMIT = 20.0  # seconds


class Watched:
    """Agents of the host's own ipc namespace, and a watch over their keys."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.logged: list[str] = []
        self.restarted: list[str] = []
        self.agents: list[Any] = []
        log = SimpleNamespace(warning=lambda name, text: self.logged.append(f"{name}: {text}"))
        roster: Any = SimpleNamespace(agents=self.agents, is_ending=False)
        services: Any = SimpleNamespace(loop=self.loop, log=log)
        self.watch = KeyWatch(services, roster)

    def add(self, name: str, path: Path, *, side: str = "out") -> Any:
        """Start an agent that has reported which key it uses."""
        key = FtokKey(str(path), 1)
        endpoint = QueueEndpoint(out=QueueOut(key)) if side == "out" else QueueEndpoint(in_=QueueIn(key))
        key_text = str(numeric_key(key, "/"))
        agent = SimpleNamespace(
            config=SimpleNamespace(name=name, endpoint=endpoint),
            process=SimpleNamespace(places={side: [key_text]}),
            state=State.RUNNING,
            container_pid=None,
            restart=lambda: self.restarted.append(name),
        )
        self.agents.append(agent)
        return agent

    def until(self, reached: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT
        while not reached():
            assert time.monotonic() < end, f"it logged {self.logged}"
            self.loop.run_once(0.05)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(keywatch, "EVERY", 0.01)
    watched = Watched()
    yield watched
    watched.watch.close()
    watched.loop.close()


def replace(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.touch()


@pytest.mark.parametrize("side", ["out", "in"])
def test_replaced_file_has_its_agent_enter_anew(tmp_path: Path, watched: Watched, side: str) -> None:
    """Only that agent does. A file that is missing meanwhile changes nothing."""
    for name in ("one", "two"):
        (tmp_path / name).touch()
        watched.add(name, tmp_path / name, side=side)
    watched.watch.wake()
    (tmp_path / "two").rename(tmp_path / "gone")
    replace(tmp_path / "one")
    watched.until(lambda: watched.restarted)
    assert set(watched.restarted) == {"one"}
    assert f"one: {tmp_path}/one was replaced: the key made of it is 0x" in watched.logged[0]


def test_agent_that_does_not_run_is_not_asked_about(tmp_path: Path, watched: Watched) -> None:
    """Neither is an agent that has reported no keys, or nonsense."""
    (tmp_path / "file").touch()
    for state, places in ((State.WAITING, None), (State.RUNNING, {}), (State.RUNNING, {"out": ["x"]})):
        agent = watched.add("a", tmp_path / "file")
        agent.state = state
        agent.process.places = agent.process.places if places is None else places
    replace(tmp_path / "file")
    (tmp_path / "last").touch()
    watched.add("last", tmp_path / "last")
    replace(tmp_path / "last")
    watched.watch.wake()
    watched.until(lambda: watched.restarted)
    assert set(watched.restarted) == {"last"}


def test_path_that_hangs_keeps_no_other_from_being_seen(
    tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look is killed, and the next one begins behind it."""
    monkeypatch.setattr(keywatch, "ANSWER_LIMIT", 0.2)
    for name in ("hangs", "second", "third"):
        (tmp_path / name).touch()
        watched.add(name, tmp_path / name)

    def look(key: FtokKey, root: str) -> int:
        if key.path.endswith("hangs"):
            time.sleep(LIMIT)  # it hangs until it is killed
        return numeric_key(key, root)

    monkeypatch.setattr(kind, "numeric_key", look)
    replace(tmp_path / "third")
    watched.watch.wake()
    watched.until(lambda: "third" in watched.restarted)


def test_path_that_hangs_in_the_kernel_delays_no_other(
    tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's file system has taken the request and does not answer: not even SIGKILL ends the look.

    It is left there, one for a path at most, until it ends; then its path is asked about again.
    """
    monkeypatch.setattr(keywatch, "ANSWER_LIMIT", 0.2)
    monkeypatch.setattr(keywatch, "DIES_WITHIN", 0.05)
    for name in ("hangs", "second", "third"):
        (tmp_path / name).touch()
        watched.add(name, tmp_path / name)
    hung: list[Child] = []
    continued, allow = os.pipe()

    def look(key: FtokKey, root: str) -> int:
        if key.path.endswith("hangs"):
            os.close(allow)
            os.set_blocking(continued, True)
            os.read(continued, 1)
        return numeric_key(key, root)

    monkeypatch.setattr(kind, "numeric_key", look)
    monkeypatch.setattr(entry, "close_all_but", lambda _kept: None)
    monkeypatch.setattr(Child, "kill", lambda child: hung.append(child))  # noqa: PLW0108  (it is a method)
    replace(tmp_path / "third")
    watched.watch.wake()
    watched.until(lambda: watched.restarted.count("third") > 3)
    assert len(hung) == 1
    replace(tmp_path / "hangs")
    os.close(allow)
    watched.until(lambda: "hangs" in watched.restarted)
    os.close(continued)


def test_no_look_is_due_without_such_a_key(watched: Watched) -> None:
    """An idle daemon has no timer for it."""
    endpoint = QueueEndpoint(out=QueueOut(1))
    watched.agents.append(SimpleNamespace(config=SimpleNamespace(endpoint=endpoint), state=State.RUNNING))
    watched.watch.wake()
    assert not watched.watch._is_due
