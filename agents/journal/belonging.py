"""Whether a journal belongs to the endpoint that it is opened for: the configuration may have changed in between.

What an endpoint keeps in a journal has a meaning only for its own kind and place: a note finds a file in one directory,
an intent was for one queue. The kind and place are therefore kept there too, and compared when it is opened:

* Nothing pending: what the old endpoint kept is wiped, and the new one begins as if it were new. Numbers and counters
  go on, so nothing is mistaken for anything else.
* Whole messages pending, and the new endpoint keeps whole messages too (queue, file): they are delivered.
* Otherwise the new endpoint cannot read what is pending, and would lose it or deliver the notes themselves. It is
  refused until a person has decided: the old place is put back for as long as it takes, or the journal is removed.
* A sink of another kind begins without an intent. Of the same kind it sees by itself that its place is another.

Wiping comes before the new place is noted, so a kill in between wipes again.
"""

from __future__ import annotations

import posixpath
import zlib

from nsbridge.agents.confinement.entry import RefusedForGood
from nsbridge.agents.journal.sinkjournal import BASELINE, HIDDEN, INTENT, KIND, LOG_APPEND, PLACE, SENDERS, SinkJournal
from nsbridge.agents.journal.sourcejournal import (
    LOG_MORE,
    LOG_MORE_SLOT,
    LOG_NOTES,
    LOG_TRUNCATIONS,
    MESSAGES,
    NOTE,
    RECORDS,
    SPOOL_NOTES,
    WHERE,
    SourceJournal,
)
from nsbridge.config.schema import Endpoint, LogEndpoint, SpoolEndpoint

_KEPT_BY_SINKS = (HIDDEN, INTENT, PLACE, SENDERS, SENDERS + 1, BASELINE, *range(LOG_APPEND, LOG_APPEND + 11))


def claim_source(journal: SourceJournal, endpoint: Endpoint) -> None:
    """Make the journal the endpoint's own; closes it and raises entry.Refused if that would lose what is pending."""
    cells, place, records = journal.cells, _place(endpoint), _records(endpoint)
    former = cells[RECORDS] if journal.taken else records
    if cells[WHERE] in (0, place) and former == records:
        cells[WHERE] = place
        return
    pending = journal.taken - journal.confirmed
    if pending and (former, records) != (MESSAGES, MESSAGES):
        journal.close()
        raise RefusedForGood(
            f"{pending} messages that were taken by an endpoint of another kind or place are not delivered yet, and "
            f"this {endpoint.name} cannot find them: put the old one back until `status` shows nothing pending, or "
            "give them up by removing the journal of this agent"
        )
    for cell in range(NOTE, LOG_TRUNCATIONS + 1):
        cells[cell] = 0
    _wipe_log(journal)
    journal.released = journal.confirmed
    cells[RECORDS] = records
    cells[WHERE] = place


def _wipe_log(journal: SourceJournal) -> None:
    """Wipe a log's position in LOG_MORE, but keep the counts of missing files (endpoints/log/tail.py)."""
    cells, half = journal.cells, LOG_MORE_SLOT // 2
    last = LOG_MORE + journal.taken % 2 * LOG_MORE_SLOT
    for slot in (LOG_MORE, LOG_MORE + LOG_MORE_SLOT):
        for cell in range(half):
            cells[slot + half + cell] = cells[last + half + cell]
            cells[slot + cell] = 0


def claim_sink(journal: SinkJournal, endpoint: Endpoint) -> None:
    """Make the journal the endpoint's own."""
    kind = zlib.crc32(endpoint.name.encode())
    if journal.cells[KIND] not in (0, kind):
        for cell in _KEPT_BY_SINKS:
            journal.cells[cell] = 0
    journal.cells[KIND] = kind


def _records(endpoint: Endpoint) -> int:
    if isinstance(endpoint, SpoolEndpoint):
        return SPOOL_NOTES
    return LOG_NOTES if isinstance(endpoint, LogEndpoint) else MESSAGES


def _place(endpoint: Endpoint) -> int:
    """A number for where it takes from, never 0. A log that has another name in its directory was rotated, for us."""
    out = endpoint.out
    if isinstance(endpoint, LogEndpoint) and isinstance(out, str):
        out = posixpath.dirname(out)
    where = posixpath.normpath(out) if isinstance(out, str) else ""  # whatever queue it is, it keeps nothing about it
    return zlib.crc32(f"{endpoint.name}:{where}".encode()) + 1
