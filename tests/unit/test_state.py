"""Files of an agent in the state directory: where, with which modes, and how large the journals are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.file import FileEndpoint
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueIn, QueueOut
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.journal.journalfile import FullError
from nsbridge.agents.journal.state import AgentFiles, longest, open_state
from nsbridge.agents.wire import Message
from nsbridge.config.schema import MAX_MESSAGE, AgentConfig, Container, Endpoint, Window
from nsbridge.config.trusted import UntrustedError
from nsbridge.supervisor.containers import engines

BOTH_WAYS: list[Endpoint] = [
    SpoolEndpoint(out="/out", in_="/in"),
    FileEndpoint(out="/out", in_="/in"),
    QueueEndpoint(out=QueueOut(1), in_=QueueIn(2)),
]


def agent(endpoint: Endpoint) -> AgentConfig:
    return AgentConfig("orders:web", Container(engines.host.KIND, ""), endpoint)


def opened(tmp_path: Path, endpoint: Endpoint, window: Window = Window()) -> AgentFiles:  # noqa: B008  (it is frozen)
    said: list[str] = []
    state = open_state(str(tmp_path / "state"), agent(endpoint), window, said.append)
    assert said == []
    return state


def close(state: AgentFiles) -> None:
    for fd in state.given:
        os.close(fd)
    for journal in (state.source, state.sink):
        if journal is not None:
            journal.close()


def found(tmp_path: Path) -> dict[str, int]:
    """Return the mode of everything below the state directory."""
    return {
        str(path.relative_to(tmp_path / "state")): stat.S_IMODE(path.stat().st_mode)
        for path in sorted((tmp_path / "state").rglob("*"))
    }


@pytest.mark.parametrize("endpoint", BOTH_WAYS)
def test_everything_is_made_for_nobody_else(tmp_path: Path, endpoint: Endpoint) -> None:
    before = os.umask(0)
    try:
        state = opened(tmp_path, endpoint)
    finally:
        os.umask(before)
    modes = found(tmp_path)
    for name in ("dead/orders", "dead/orders/web", "dead/orders/.retry", "dead/orders/.retry/web", "journal/orders"):
        assert modes[name] == 0o700, name
    assert modes["journal/orders/web.in"] == modes["journal/orders/web.out"] == 0o600
    assert {os.fstat(fd).st_ino for fd in state.given} == {
        (tmp_path / "state/dead/orders/web").stat().st_ino,
        (tmp_path / "state/dead/orders/.retry/web").stat().st_ino,
    }
    close(state)


@pytest.mark.parametrize(
    ("endpoint", "names"),
    [(SpoolEndpoint(out="/out"), ["web.out", "web.waiting"]), (SpoolEndpoint(in_="/in"), ["web.in"])],
)
def test_only_the_sides_that_are_configured_have_a_journal(
    tmp_path: Path, endpoint: Endpoint, names: list[str]
) -> None:
    state = opened(tmp_path, endpoint)
    assert sorted(os.listdir(tmp_path / "state/journal/orders")) == names
    assert (state.source is None, state.source_fd) == ((True, -1) if "web.in" in names else (False, state.source_fd))
    assert (state.sink is None) == ("web.out" in names)
    assert (state.dead_retry < 0) == (state.source is None)
    close(state)


def test_nothing_is_inherited_by_a_program_that_is_executed(tmp_path: Path) -> None:
    state = opened(tmp_path, SpoolEndpoint(out="/out", in_="/in"))
    assert not any(os.get_inheritable(fd) for fd in (*state.given, state.source_fd, state.sink_fd))
    close(state)


def test_a_link_in_place_of_the_dead_letters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state/dead/orders").mkdir(parents=True)
    (tmp_path / "state/dead/orders/web").symlink_to("/etc")
    with pytest.raises(UntrustedError, match=r"dead/orders/web is a link or a file"):
        opened(tmp_path, SpoolEndpoint(in_="/in"))


@pytest.mark.parametrize("endpoint", BOTH_WAYS)
@pytest.mark.parametrize("window", [Window(), Window(messages=1, bytes=1), Window(messages=1000, bytes=100_000)])
def test_the_journal_holds_a_full_window_and_one_message_more(
    tmp_path: Path, endpoint: Endpoint, window: Window
) -> None:
    """A source keeps a note of each, or the message; the last one may be the longest there is."""
    state = opened(tmp_path, endpoint, window)
    assert state.source is not None
    most = 512 - 16 if isinstance(endpoint, SpoolEndpoint) else window.bytes // window.messages
    for _ in range(window.messages):
        state.source.append(Message(1, b"x" * most))
    state.source.confirm(1)
    state.source.append(Message(1, b"x" * most))
    close(state)


@pytest.mark.parametrize("endpoint", BOTH_WAYS)
def test_a_dead_letter_of_the_longest_kind_fits(tmp_path: Path, endpoint: Endpoint) -> None:
    window = Window(messages=1, bytes=1)
    state = opened(tmp_path, endpoint, window)
    assert state.source is not None
    size = longest(agent(endpoint), window)
    assert size > 8192
    state.source.append(Message(1, b"x" * size))
    with pytest.raises(FullError):
        state.source.append(Message(1, b"x" * size))
    close(state)


def test_no_letter_is_longer_than_a_message_may_be() -> None:
    assert longest(agent(FileEndpoint(out="/out")), Window(bytes=1 << 40)) == MAX_MESSAGE
