"""Checks that a journal belongs to the endpoint that it is opened for: the configuration may have changed in between.

What an endpoint keeps in a journal has a meaning only for its own kind and place: a note finds a file in one directory,
an intent was for one queue. The kind and place are therefore kept there too, and compared when it is opened:

* Nothing pending: what the old endpoint kept is wiped, and the new one begins as if it were new. Numbers and counters
  continue, so nothing is mistaken for anything else.
* Whole messages pending, and the new endpoint keeps whole messages too (queue, file): they are delivered.
* Otherwise the new endpoint cannot read what is pending, and would lose it or deliver the notes themselves. It is
  refused until a person has decided: the old place is put back for as long as it takes, or the journal is removed.
* A sink of another kind begins without an intent. One of the same kind detects a changed place by itself.

Wiping comes before the new place is noted, so a kill in between wipes again.
"""

from __future__ import annotations

import zlib

from nsbridge.agents.confinement.entry import RefusedForGood
from nsbridge.agents.journal import sinkjournal, sourcejournal
from nsbridge.agents.journal.sinkjournal import INTENT, KIND, PLACE, SinkJournal
from nsbridge.agents.journal.sourcejournal import MESSAGES, MISSED, MISSED_SLOT, RECORDS, WHERE, SourceJournal
from nsbridge.config.schema import Endpoint


def claim_source(journal: SourceJournal, endpoint: Endpoint) -> None:
    """Make the journal the endpoint's own; closes it and raises entry.Refused if that would lose what is pending."""
    cells, place, records = journal.cells, _place(endpoint), endpoint.notes or MESSAGES
    former = cells[RECORDS] if journal.taken else records
    if cells[WHERE] in (0, place) and former == records:
        cells[RECORDS] = records
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
    for cell in sourcejournal.KIND_CELLS:
        cells[cell] = 0
    last = MISSED + journal.taken % 2 * MISSED_SLOT
    for slot in (MISSED, MISSED + MISSED_SLOT):
        cells[slot], cells[slot + 1] = cells[last], cells[last + 1]
    journal.released = journal.confirmed
    cells[RECORDS] = records
    cells[WHERE] = place


def claim_sink(journal: SinkJournal, endpoint: Endpoint) -> None:
    """Make the journal the endpoint's own."""
    kind = zlib.crc32(endpoint.name.encode())
    if journal.cells[KIND] not in (0, kind):
        for cell in (INTENT, PLACE, *sinkjournal.KIND_CELLS):
            journal.cells[cell] = 0
    journal.cells[KIND] = kind


def _place(endpoint: Endpoint) -> int:
    """Return a number for the place that messages are taken from, never 0."""
    return zlib.crc32(f"{endpoint.name}:{endpoint.journal_place}".encode()) + 1
