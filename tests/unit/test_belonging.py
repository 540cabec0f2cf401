"""An endpoint that was changed finds a journal of its predecessor: nothing is lost, and no note is ever a message."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import pytest

from nsbridge.agents.confinement.entry import RefusedForGood
from nsbridge.agents.endpoints.file import NOTE, FileEndpoint
from nsbridge.agents.endpoints.log.cells import LOG_MORE, LOG_MORE_SLOT, LOG_POSITION
from nsbridge.agents.endpoints.log.config import LogEndpoint
from nsbridge.agents.endpoints.queue.cells import BASELINE, LATEST, SENDERS
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueIn, QueueOut
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.journal.sinkjournal import INTENT, PLACE
from nsbridge.agents.journal.sourcejournal import RECORDS
from nsbridge.agents.journal.state import AgentFiles, open_state
from nsbridge.agents.wire import Message
from nsbridge.config.schema import AgentConfig, Container, Endpoint, Window
from nsbridge.supervisor.containers import engines

ENDPOINTS: dict[str, Endpoint] = {
    "spool": SpoolEndpoint(out="/a/out", in_="/a/in"),
    "spool elsewhere": SpoolEndpoint(out="/b/out", in_="/b/in"),
    "log": LogEndpoint(out="/a/log", in_="/a/in.log"),
    "log elsewhere": LogEndpoint(out="/b/log", in_="/b/in.log"),
    "file": FileEndpoint(out="/a/file", in_="/a/in.file"),
    "file elsewhere": FileEndpoint(out="/b/file", in_="/b/in.file"),
    "queue": QueueEndpoint(out=QueueOut(1), in_=QueueIn(2)),
    "queue elsewhere": QueueEndpoint(out=QueueOut(3), in_=QueueIn(4)),
}
KEEPS_MESSAGES = ("file", "file elsewhere", "queue", "queue elsewhere")
KIND = {"spool": 1, "log": 2, "file": 0, "queue": 0}  # of the records


def opened(tmp_path: Path, endpoint: Endpoint) -> AgentFiles:
    agent = AgentConfig("orders:web", Container(engines.host.KIND, ""), endpoint)
    said: list[str] = []
    state = open_state(str(tmp_path), agent, Window(), said.append)
    assert said == []
    return state


def close(state: AgentFiles) -> None:
    for fd in state.given:
        os.close(fd)
    assert state.source is not None
    assert state.sink is not None
    state.source.close()
    state.sink.close()


def lived(tmp_path: Path, name: str, *, pending: int) -> None:
    """Run an agent of that endpoint: it takes three messages, of which so many stay pending, and hands one over."""
    state = opened(tmp_path, ENDPOINTS[name])
    assert state.source is not None
    assert state.sink is not None
    state.source.cells[RECORDS] = KIND[name.split(maxsplit=1)[0]]  # as the endpoints do
    for number in range(3):
        state.source.append(Message(1, b"record %d" % number))
    state.source.confirm(3 - pending)
    for cell in (NOTE, NOTE + 1, LOG_POSITION):
        state.source.cells[cell] = 77
    state.sink.adopt(5, 0)
    state.sink.hand(1)
    for cell in (INTENT, PLACE, SENDERS, SENDERS + 1, BASELINE, LATEST):
        state.sink.cells[cell] = 77
    close(state)


@pytest.mark.parametrize(("before", "after"), list(product(ENDPOINTS, repeat=2)))
def test_what_is_pending_is_kept_for_who_can_read_it(tmp_path: Path, before: str, after: str) -> None:
    lived(tmp_path, before, pending=2)
    if before == after or (before in KEEPS_MESSAGES and after in KEEPS_MESSAGES):
        state = opened(tmp_path, ENDPOINTS[after])
        assert state.source is not None
        assert (state.source.confirmed, state.source.taken) == (1, 3)
        assert state.source.get(3) == Message(1, b"record 2")
        close(state)
        return
    for _ in range(2):
        with pytest.raises(RefusedForGood, match="2 messages that were taken by an endpoint of another kind or place"):
            opened(tmp_path, ENDPOINTS[after])
    state = opened(tmp_path, ENDPOINTS[before])
    assert state.source is not None
    assert (state.source.confirmed, state.source.taken, state.source.cells[NOTE]) == (1, 3, 77), "the way back is open"
    close(state)


@pytest.mark.parametrize(("before", "after"), list(product(ENDPOINTS, repeat=2)))
def test_another_endpoint_continues_numbering_if_none_pend(tmp_path: Path, before: str, after: str) -> None:
    lived(tmp_path, before, pending=0)
    state = opened(tmp_path, ENDPOINTS[after])
    assert state.source is not None
    assert state.sink is not None
    both_queues = before.startswith("queue") and after.startswith("queue")  # a queue keeps nothing of its place
    kept = 77 if before == after or both_queues else 0
    assert [state.source.cells[cell] for cell in (NOTE, NOTE + 1, LOG_POSITION)] == [kept] * 3
    assert state.source.cells[RECORDS] == KIND[after.split(maxsplit=1)[0]]
    assert (state.source.confirmed, state.source.taken, state.sink.handed, state.sink.epoch) == (3, 3, 1, 5)
    same_kind = before.split(maxsplit=1)[0] == after.split(maxsplit=1)[0]
    sink = [state.sink.cells[cell] for cell in (INTENT, PLACE, SENDERS, SENDERS + 1, BASELINE, LATEST)]
    assert sink == [77 if same_kind else 0] * 6
    close(state)


def test_a_log_renamed_within_its_directory_counts_as_rotated(tmp_path: Path) -> None:
    lived(tmp_path, "log", pending=2)
    state = opened(tmp_path, LogEndpoint(out="/a/renamed", in_="/a/in.log"))
    assert state.source is not None
    assert state.source.cells[LOG_POSITION] == 77
    close(state)


def test_a_journal_from_before_this_was_kept_is_believed(tmp_path: Path) -> None:
    """An update of nsbridge must not lose a place."""
    lived(tmp_path, "log", pending=2)
    state = opened(tmp_path, ENDPOINTS["log"])
    assert state.source is not None
    state.source.cells[30] = 0
    close(state)
    state = opened(tmp_path, ENDPOINTS["log elsewhere"])
    assert state.source is not None
    assert (state.source.cells[LOG_POSITION], state.source.taken) == (77, 3)
    close(state)


def test_missed_count_survives_a_change_of_position(tmp_path: Path) -> None:
    lived(tmp_path, "log", pending=0)
    state = opened(tmp_path, ENDPOINTS["log"])
    assert state.source is not None
    last = LOG_MORE + state.source.taken % 2 * LOG_MORE_SLOT
    for cell, value in enumerate((11, 12, 13, 14)):
        state.source.cells[last + cell] = value
    close(state)
    state = opened(tmp_path, ENDPOINTS["log elsewhere"])
    assert state.source is not None
    for slot in (LOG_MORE, LOG_MORE + LOG_MORE_SLOT):
        assert [*state.source.cells[slot : slot + LOG_MORE_SLOT]] == [0, 0, 13, 14]
    close(state)
