"""Decides about messages in doubt: it is unknown whether a killed sink had sent them."""

from __future__ import annotations

from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.journal.counted import COUNT_LIFE, forget_count
from nsbridge.agents.journal.sinkjournal import IN_DOUBT, NOT_DELIVERED, SinkJournal
from nsbridge.config.schema import InDoubt

OF_ANOTHER_LIFE = "its source has lost its journal since, and another has the numbers that it had"


def leave_counter(host: AgentApi, journal: SinkJournal, in_doubt: InDoubt) -> None:
    """Decide what a former agent left in flight whose messages the kernel counted, where there is no counter now."""
    if not journal.cells[COUNT_LIFE]:
        return
    if doubtful := forget_count(journal):
        journal.hand(decide(host, journal, doubtful, in_doubt))


def decide(host: AgentApi, journal: SinkJournal, doubtful: int, in_doubt: InDoubt) -> int:
    """Count and log messages in doubt; return the seq up to which they are finished."""
    is_again = in_doubt is InDoubt.RESEND
    what = f"{messages(doubtful)} after {journal.handed}"
    host.log(
        "warning", f"unknown whether {what} had been sent before a kill: {'sent again' if is_again else 'skipped'}"
    )
    journal.cells[IN_DOUBT] += doubtful
    if is_again:
        return journal.handed
    journal.cells[NOT_DELIVERED] += doubtful
    return journal.handed + doubtful


def messages(count: int) -> str:
    """Return how many messages, in words."""
    return f"{count} message{'' if count == 1 else 's'}"
