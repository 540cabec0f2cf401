"""NoteStore: notes in the journal, messages in memory, and what is left of both after a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.agents.endpoints.log.config import LogEndpoint
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sourcejournal import RECORDS, TAKEN
from nsbridge.agents.journal.store import Load, NoteStore
from nsbridge.agents.wire import VOID, Message, Run

Reopen = Callable[..., NoteStore]


def in_memory(_note: bytes, _seq: int) -> None:
    pytest.fail("it is in memory")


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Reopen]:
    """Yield a function that opens the store as the next agent finds it; the one before is closed."""
    stores: list[NoteStore] = []

    def next_agent(load: Load = in_memory) -> NoteStore:
        while stores:
            stores.pop().journal.close()
        stores.append(NoteStore(open_source(str(tmp_path / "journal"), 11, 4096), load))
        return stores[0]

    yield next_agent
    for store in stores:
        store.journal.close()


def message_of(store: NoteStore, seq: int) -> Message | None:
    """Return the one message of that number, None if it cannot be had now."""
    run = store.run(seq)
    return None if run is None else Message(run.type, run.bodies[0])


@pytest.fixture
def store(reopen: Reopen) -> NoteStore:
    return reopen()


def test_a_noted_message_comes_from_memory_while_the_agent_lives(store: NoteStore) -> None:
    assert store.note(0, (b"body",), b"note") == 1
    assert message_of(store, 1) == Message(0, b"body")
    assert (store.note_of(1), store.pending_bytes, store.taken, store.confirmed) == (b"note", 4, 1, 0)


def test_after_a_kill_it_is_loaded_by_its_note_once(store: NoteStore, reopen: Reopen) -> None:
    store.note(0, (b"body",), b"note")
    epoch = store.epoch
    asked: list[bytes] = []

    def load(note: bytes, _seq: int) -> tuple[int, tuple[bytes]]:
        asked.append(note)
        return 0, (b"body",)

    again = reopen(load)
    assert (again.epoch, again.pending_bytes) == (epoch, 0)
    assert [message_of(again, 1), message_of(again, 1)] == [Message(0, b"body")] * 2
    assert (asked, again.pending_bytes) == ([b"note"], 4)


def test_one_that_cannot_be_loaded_now_is_asked_for_again(store: NoteStore, reopen: Reopen) -> None:
    """None is no answer: its directory is not there yet."""
    store.note(0, (b"body",), b"note")
    answers: list[tuple[int, tuple[bytes]] | None] = [None, (0, (b"body",))]
    again = reopen(lambda _note, _seq: answers.pop(0))
    assert message_of(again, 1) is None
    assert again.pending_bytes == 0
    assert message_of(again, 1) == Message(0, b"body")


def test_one_that_is_no_more_gives_void_and_can_be_confirmed(store: NoteStore, reopen: Reopen) -> None:
    store.note(0, (b"body",), b"note")
    again = reopen(lambda _note, _seq: (VOID.type, (VOID.body,)))
    assert message_of(again, 1) == VOID
    again.confirm(1)
    assert (again.confirmed, again.pending_bytes) == (1, 0)


def test_a_message_that_is_nowhere_in_the_container_is_kept(store: NoteStore, reopen: Reopen) -> None:
    """A dead letter that is taken again."""
    store.note(0, (b"a",), b"note a")
    assert store.append(Message(0, b"\0kept\xff")) == 2
    store.note(0, (b"b",), b"note b")
    assert (store.note_of(2), message_of(store, 2)) == (b"", Message(0, b"\0kept\xff"))
    again = reopen(lambda note, _seq: (0, (note[-1:],)))
    assert [message_of(again, seq) for seq in (1, 2, 3)] == [
        Message(0, b"a"),
        Message(0, b"\0kept\xff"),
        Message(0, b"b"),
    ]
    again.confirm(3)
    assert (again.confirmed, again.pending_bytes) == (3, 0)


def test_confirming_what_was_never_loaded_leaves_the_sum_right(store: NoteStore, reopen: Reopen) -> None:
    """After a restart the sink may confirm at once what the source has not read again."""
    for number in range(3):
        store.note(0, (b"body",), b"%d" % number)
    again = reopen(lambda _note, _seq: (0, (b"body",)))
    message_of(again, 3)
    again.confirm(2)
    assert (again.confirmed, again.pending_bytes) == (2, 4)
    again.confirm(3)
    assert again.pending_bytes == 0


def test_a_confirmed_message_s_note_stays_until_the_next_take(store: NoteStore) -> None:
    """Its file has still to be removed."""
    store.note(0, (b"body",), b"note")
    store.confirm(1)
    assert store.note_of(1) == b"note"


BODIES = (b"a", b"bc", b"", b"def")


def load_rest(note: bytes, seq: int) -> tuple[int, tuple[bytes, ...]]:
    """Return the position for a note that holds its first seq."""
    return 0, BODIES[seq - int(note) :]


def test_several_messages_have_one_note_and_numbers_of_their_own(store: NoteStore) -> None:
    store.note(0, (b"before",), b"0")
    assert store.note(0, BODIES, b"2") == 5
    assert store.run(2) == Run(store.epoch, 2, 0, BODIES)
    assert store.run(4) == Run(store.epoch, 4, 0, BODIES[2:])
    assert [store.note_of(seq) for seq in range(1, 6)] == [b"0", *[b"2"] * 4]


def test_a_run_confirmed_in_part_resumes_after_that_part(store: NoteStore, reopen: Reopen) -> None:
    store.note(0, BODIES, b"1")
    store.confirm(2)
    assert store.pending_bytes == 3
    assert store.run(3) == Run(store.epoch, 3, 0, BODIES[2:])
    again = reopen(load_rest)
    assert again.run(3) == Run(store.epoch, 3, 0, BODIES[2:])
    assert again.pending_bytes == 3
    again.confirm(4)
    assert (again.confirmed, again.pending_bytes) == (4, 0)


def test_a_run_keeps_its_numbers_in_a_journal_of_another_size(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    store = NoteStore(open_source(path, 11, 4096), in_memory)
    store.note(0, (b"first",), b"0")
    store.note(0, BODIES, b"2")
    store.confirm(3)
    store.journal.close()
    again = NoteStore(open_source(path, 23, 8192), load_rest)
    assert (again.confirmed, again.taken, again.note_of(4)) == (3, 5, b"2")
    assert again.run(4) == Run(again.epoch, 4, 0, BODIES[2:])
    again.journal.close()


def test_a_note_that_a_kill_left_unpublished_is_none(store: NoteStore, reopen: Reopen) -> None:
    """Its messages are still in the container, and only some of their numbers may have been given."""
    store.journal.cells[RECORDS] = LogEndpoint.notes
    store.note(0, (b"one",), b"0")
    taken = store.journal.cells[TAKEN]
    store.note(0, BODIES, b"2")
    store.journal.cells[TAKEN] = taken
    again = reopen()
    assert (again.taken, again.journal.recovered) == (1, 0)
    assert again.note(0, BODIES, b"2") == 5
