"""NoteStore: notes in the journal, messages in memory, and what is left of both after a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsbridge.agents.journal import open_source
from nsbridge.agents.store import NoteStore
from nsbridge.agents.wire import VOID, Message


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Callable[[], NoteStore]]:
    """The store as the next agent finds it; the one before is closed."""
    stores: list[NoteStore] = []

    def next_agent() -> NoteStore:
        while stores:
            stores.pop().journal.close()
        stores.append(NoteStore(open_source(str(tmp_path / "journal"), 11, 4096)))
        return stores[0]

    yield next_agent
    for store in stores:
        store.journal.close()


@pytest.fixture
def store(reopen: Callable[[], NoteStore]) -> NoteStore:
    return reopen()


def test_a_noted_message_is_had_from_memory_while_the_agent_lives(store: NoteStore) -> None:
    store.load = lambda _note: pytest.fail("it is in memory")
    assert store.note(Message(0, b"body"), b"note") == 1
    assert store.get(1) == Message(0, b"body")
    assert (store.note_of(1), store.pending_bytes, store.taken, store.confirmed) == (b"note", 4, 1, 0)


def test_after_a_kill_it_is_loaded_by_its_note_once(store: NoteStore, reopen: Callable[[], NoteStore]) -> None:
    store.note(Message(0, b"body"), b"note")
    epoch = store.epoch
    again = reopen()
    asked: list[bytes] = []

    def load(note: bytes) -> Message:
        asked.append(note)
        return Message(0, b"body")

    again.load = load
    assert (again.epoch, again.pending_bytes) == (epoch, 0)
    assert [again.get(1), again.get(1)] == [Message(0, b"body")] * 2
    assert (asked, again.pending_bytes) == ([b"note"], 4)


def test_one_that_cannot_be_loaded_now_is_asked_for_again(store: NoteStore, reopen: Callable[[], NoteStore]) -> None:
    """None is no answer: its directory is not there yet."""
    store.note(Message(0, b"body"), b"note")
    again = reopen()
    answers: list[Message | None] = [None, Message(0, b"body")]
    again.load = lambda _note: answers.pop(0)
    assert again.get(1) is None
    assert again.pending_bytes == 0
    assert again.get(1) == Message(0, b"body")


def test_one_that_is_no_more_gives_void_and_can_be_confirmed(store: NoteStore, reopen: Callable[[], NoteStore]) -> None:
    store.note(Message(0, b"body"), b"note")
    again = reopen()
    again.load = lambda _note: VOID
    assert again.get(1) == VOID
    again.confirm(1)
    assert (again.confirmed, again.pending_bytes) == (1, 0)


def test_a_message_that_is_nowhere_in_the_container_is_kept_whole(
    store: NoteStore, reopen: Callable[[], NoteStore]
) -> None:
    """A dead letter that is taken again."""
    store.note(Message(0, b"a"), b"note a")
    assert store.append(Message(0, b"\0kept\xff")) == 2
    store.note(Message(0, b"b"), b"note b")
    assert (store.note_of(2), store.get(2)) == (b"", Message(0, b"\0kept\xff"))
    again = reopen()
    again.load = lambda note: Message(0, note[-1:])
    assert [again.get(seq) for seq in (1, 2, 3)] == [Message(0, b"a"), Message(0, b"\0kept\xff"), Message(0, b"b")]
    again.confirm(3)
    assert (again.confirmed, again.pending_bytes) == (3, 0)


def test_confirming_what_was_never_loaded_leaves_the_sum_right(
    store: NoteStore, reopen: Callable[[], NoteStore]
) -> None:
    """After a restart the sink may confirm at once what the source has not read again."""
    for number in range(3):
        store.note(Message(0, b"body"), b"%d" % number)
    again = reopen()
    again.load = lambda _note: Message(0, b"body")
    again.get(3)
    again.confirm(2)
    assert (again.confirmed, again.pending_bytes) == (2, 4)
    again.confirm(3)
    assert again.pending_bytes == 0


def test_the_note_of_a_confirmed_message_is_there_until_the_next_is_taken(store: NoteStore) -> None:
    """Its file has still to be removed."""
    store.note(Message(0, b"body"), b"note")
    store.confirm(1)
    assert store.note_of(1) == b"note"
