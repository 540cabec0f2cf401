"""Shows after a kill which messages an agent had sent by one system call each: into a POSIX queue or a socket.

With the kernel's count one note before each batch is enough (journal/counted.py). Without it each message is noted
before and after it is sent, so a kill leaves at most one message in doubt. Nothing else shows whether that one was
sent: neither keeps a note of its last sender, and no call looks at its messages without taking them.
"""

from __future__ import annotations

from nsbridge.agents.counter import Counts
from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.endpoints.doubt import decide, messages
from nsbridge.agents.journal.counted import COUNT_LIFE, SentCount, forget_count
from nsbridge.agents.journal.journalfile import seal
from nsbridge.agents.journal.sinkjournal import INTENT, SinkJournal
from nsbridge.config.schema import Delivery, InDoubt, RouteConfig


class SendEvidence:
    """Notes around the messages of one sink: a subclass makes those that it needs."""

    def __init__(self, journal: SinkJournal) -> None:
        self.journal = journal

    def begin(self, last: int) -> None:
        """Note that messages up to that seq will be sent."""

    def before(self, seq: int) -> None:
        """Note that this message will be sent."""

    def after(self, seq: int) -> None:
        """Note that it was sent."""

    def not_sent(self, seq: int) -> None:
        """Note that the kernel refused it."""


class CountedSends(SendEvidence):
    """The kernel's count is the evidence."""

    def __init__(self, journal: SinkJournal, counter: Counts) -> None:
        super().__init__(journal)
        self._count = SentCount(journal, counter)

    def recover(self, host: AgentApi, in_doubt: InDoubt, *, is_exact: bool) -> None:
        """Find out what the former agent had sent; to be called once."""
        journal = self.journal
        if not journal.cells[COUNT_LIFE]:  # the former agent had no counter
            doubtful = forget_count(journal)
            self._count.settled(decide(host, journal, doubtful, in_doubt) if doubtful and is_exact else journal.handed)
            return
        found = self._count.recover()
        if found.certain:
            host.log(
                "info", f"{messages(found.certain)} up to {journal.handed} had been sent when the agent was killed"
            )
        if found.doubtful:
            self._count.settled(decide(host, journal, found.doubtful, in_doubt))

    def begin(self, last: int) -> None:
        """See SendEvidence."""
        self._count.begin(last)


class NotedSends(SendEvidence):
    """Notes of each message are the evidence."""

    def recover(self, host: AgentApi, in_doubt: InDoubt, *, is_exact: bool) -> None:
        """Decide about what the former agent left in doubt; to be called once."""
        was_counted = bool(self.journal.cells[COUNT_LIFE])
        doubtful = forget_count(self.journal)
        if doubtful and (is_exact or was_counted):
            self.journal.hand(decide(host, self.journal, doubtful, in_doubt))

    def before(self, seq: int) -> None:
        """See SendEvidence."""
        self.journal.cells[INTENT] = seq

    def after(self, seq: int) -> None:
        """See SendEvidence."""
        self.journal.cells[self.journal.handed_cell] = seal(seq << 1)  # a kill before this leaves it in doubt

    def not_sent(self, seq: int) -> None:
        """See SendEvidence."""
        self.journal.cells[INTENT] = seq - 1


def evidence(host: AgentApi, journal: SinkJournal, counter: Counts | None, route: RouteConfig) -> SendEvidence:
    """Return the evidence of a new sink, which has brought the journal up to what the former agent had sent."""
    found: CountedSends | NotedSends = NotedSends(journal) if counter is None else CountedSends(journal, counter)
    found.recover(host, route.in_doubt, is_exact=route.delivery is Delivery.EXACTLY_ONCE)
    return found
