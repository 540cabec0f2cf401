"""The `in` side of a spool, where what it is to write comes of two sources."""

from __future__ import annotations

from pathlib import Path

from nsbridge.agents.endpoints.spool_sink import SpoolSink
from nsbridge.agents.wire import Run
from nsbridge.config.schema import SpoolEndpoint
from tests.fake_host import OfferedSinkHost

OLD = OfferedSinkHost.EPOCH


def test_a_message_of_a_source_that_has_lost_its_journal_leaves_no_intent_for_the_new_one(tmp_path: Path) -> None:
    """Killed after it: the new source's message of that number is not taken for handed over."""
    box = tmp_path / "in"
    for life in range(2):
        host = OfferedSinkHost(tmp_path / "a.in")
        sink = SpoolSink(host, host.tree, SpoolEndpoint(in_=str(box)), host.journal)
        sink.start()
        if life == 0:
            host.journal.adopt(OLD + 1, 0)
            assert sink.put(Run(OLD, 1, 0, (b"old",))) == 1
        else:
            assert host.journal.handed == 0, host.said
            assert sink.put(Run(OLD + 1, 1, 0, (b"new",))) == 1
        host.lose(sink._watch)
    assert [path.read_bytes() for path in sorted(box.iterdir())] == [b"old", b"new"]


def test_a_directory_above_it_that_is_moved_away_is_noticed_at_a_heartbeat(tmp_path: Path) -> None:
    """The next message goes where the program looks for it."""
    box = tmp_path / "spool" / "in"
    box.parent.mkdir()
    host = OfferedSinkHost(tmp_path / "a.in")
    sink = SpoolSink(host, host.tree, SpoolEndpoint(in_=str(box)), host.journal)
    sink.start()
    box.parent.rename(tmp_path / "moved")
    box.mkdir(parents=True)
    host.beat()
    assert sink.put(Run(OLD, 1, 0, (b"body",))) == 1
    assert [path.read_bytes() for path in box.iterdir()] == [b"body"]
    host.lose(sink._watch)
