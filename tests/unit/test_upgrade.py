"""Journals that commit 41b66b5 made are read today: tests/data/make_journals.py made them."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from nsbridge.agents import journalreader
from nsbridge.agents.endpoints import kinds
from nsbridge.agents.endpoints.file import NOTE, FileEndpoint
from nsbridge.agents.endpoints.log import cells as log
from nsbridge.agents.endpoints.log.config import LogEndpoint
from nsbridge.agents.endpoints.log.sink import Intent, Intents
from nsbridge.agents.endpoints.log.tail import Position, Positions
from nsbridge.agents.endpoints.queue import cells as queue
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueIn, QueueOut
from nsbridge.agents.endpoints.spool import cells as spool
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.notes import SpoolFileId, sent_name, unpack
from nsbridge.agents.journal.journalfile import PAGE, VERSION, parse_header
from nsbridge.agents.journal.sinkjournal import BYTES, PLACE
from nsbridge.agents.journal.state import AgentFiles, open_state
from nsbridge.agents.journal.store import NOTE as NOTED
from nsbridge.agents.journal.store import NoteStore
from nsbridge.agents.statefiles import journal_path
from nsbridge.agents.wire import Message
from nsbridge.config.schema import AgentConfig, Container, Endpoint, Window
from nsbridge.supervisor.containers.engines import host

MADE = Path(__file__).parents[1] / "data" / "journals"
PATHS = ("/srv/data/out", "/srv/data/in")
ENDPOINTS: dict[str, Endpoint] = {
    "spool": SpoolEndpoint(*PATHS, max_message=1000),
    "log": LogEndpoint(*PATHS, max_message=1000),
    "file": FileEndpoint(*PATHS, max_message=1000),
    "queue": QueueEndpoint(out=QueueOut(1), in_=QueueIn(2), max_message=1000),
}
SHOWN = {
    "spool": ["file name 2", "file name 3"],
    "log": ["bytes 10 to 17 of inode 99", "bytes 17 to 25 of inode 99"],
    "file": ["second", "third \\xff"],
    "queue": ["second", "third \\xff"],
}

Open = Callable[[str], AgentFiles]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Return a function that opens the journals of a kind as its next agent does."""

    def opened(kind: str) -> AgentFiles:
        name = f"r:{kind}"
        for side in ("out", "in"):
            path = Path(journal_path(str(tmp_path), name, side))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.decompress((MADE / f"{kind}.{side}.gz").read_bytes()))
        agent = AgentConfig(name, Container(host.KIND, ""), ENDPOINTS[kind])
        return open_state(str(tmp_path), agent, Window(messages=4, bytes=1000), pytest.fail)

    return opened


@pytest.mark.parametrize("kind", ENDPOINTS)
def test_old_journals_keep_their_numbers(opened: Open, kind: str, tmp_path: Path) -> None:
    files = opened(kind)
    assert files.source is not None
    assert files.sink is not None
    assert (files.source.confirmed, files.source.taken) == (1, 3)
    assert (files.sink.epoch, files.sink.handed, files.sink.intent) == (files.source.epoch, 2, 3)
    assert files.sink.cells[BYTES] == 20
    facts = journalreader.read(str(journal_path(str(tmp_path), f"r:{kind}", "out")), None)
    messages = facts["messages"]
    assert isinstance(messages, list)
    assert [message["shown"] for message in messages] == SHOWN[kind]


@pytest.mark.parametrize("kind", ENDPOINTS)
def test_an_opened_journal_gets_the_current_version(opened: Open, kind: str, tmp_path: Path) -> None:
    """The version that wrote it would not understand what it holds now, so that version has to refuse it."""
    opened(kind)
    for side in ("out", "in"):
        page = Path(journal_path(str(tmp_path), f"r:{kind}", side)).read_bytes()[:PAGE]
        assert struct.unpack_from("<8sI", page) == (b"nsbridge", VERSION)
        parse_header(page)  # its checksum is right


@pytest.mark.parametrize("kind", ["file", "queue"])
def test_old_journals_keep_whole_messages(opened: Open, kind: str) -> None:
    source = opened(kind).source
    assert source is not None
    types = (2, 3) if kind == "queue" else (0, 0)
    assert [source.get(2), source.get(3)] == [Message(types[0], b"second"), Message(types[1], b"third \xff")]


def test_old_notes_of_a_spool_find_their_files(opened: Open) -> None:
    source = opened("spool").source
    assert source is not None
    assert [source.get(seq).type for seq in (2, 3)] == [NOTED, NOTED]
    assert unpack(source.get(2).body) == (SpoolFileId(2, 7, 6), b"name 2")


def test_old_notes_of_a_spool_send_their_names(opened: Open) -> None:
    """A sink keeps them now, although none did when they were written."""
    source = opened("spool").source
    assert source is not None
    store = NoteStore(source, lambda _note, _seq: (0, (b"body",)), sent_name)
    run = store.run(2)
    assert run is not None
    assert run.names == [b"name 2"]


def test_old_cells_of_sources_keep_their_meaning(opened: Open) -> None:
    file, log_source = opened("file").source, opened("log").source
    assert file is not None
    assert log_source is not None
    assert file.cells[NOTE + file.taken % 2] == 1003
    assert Positions(log_source).last() == Position(99, 5, 17, 25, 6, 77, 88, 3, 30)
    assert kinds.KINDS["log"].missed(log_source.cells, log_source.taken) == (3, 30)


def test_old_cells_of_sinks_keep_their_meaning(opened: Open) -> None:
    spool_sink, queue_sink, log_sink = (opened(kind).sink for kind in ("spool", "queue", "log"))
    assert spool_sink is not None
    assert queue_sink is not None
    assert log_sink is not None
    assert [spool_sink.cells[cell] for cell in (PLACE, *spool.SINK_CELLS)] == [15, 36, 37, 38]
    assert [queue_sink.cells[cell] for cell in (PLACE, *queue.SINK_CELLS)] == [*range(15, 23), 0, 0]
    assert Intents(log_sink).read() == Intent(log_sink.epoch, 3, 3, 123, 99)
    assert [*log.SINK_CELLS] == [*range(19, 30)]
