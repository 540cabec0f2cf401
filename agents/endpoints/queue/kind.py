"""The `queue` endpoint: its entry in the registry."""

from __future__ import annotations

import os

from nsbridge.agents import places
from nsbridge.agents.confinement.callrules import THREADS, KindCalls
from nsbridge.agents.confinement.entry import Assignment, Entered, Gone
from nsbridge.agents.counter import Counts
from nsbridge.agents.endpoints.base import AgentApi, Sink, Source
from nsbridge.agents.endpoints.doubt import leave_counter
from nsbridge.agents.endpoints.kind import ServedEndpoint, container_root
from nsbridge.agents.endpoints.queue import cells
from nsbridge.agents.endpoints.queue.config import FtokKey, QueueEndpoint
from nsbridge.agents.endpoints.queue.counted_sink import CountedQueueSink
from nsbridge.agents.endpoints.queue.counted_source import CountedQueueSource
from nsbridge.agents.endpoints.queue.exact_sink import ExactQueueSink
from nsbridge.agents.endpoints.queue.queue import QueueOwner, key_and_makers, numeric_key, shown
from nsbridge.agents.endpoints.queue.sink import QueueSink
from nsbridge.agents.endpoints.queue.source import QueueSource
from nsbridge.agents.endpoints.queue.surroundings import QueueSurroundings
from nsbridge.agents.endpoints.queue.unused import WatchedKey
from nsbridge.agents.endpoints.unused import UnusedQueue
from nsbridge.agents.identity.identity import IdMap, UserRecord
from nsbridge.agents.journal.counted import SentCount
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.config.schema import Delivery


class ServedQueue(ServedEndpoint[QueueEndpoint]):
    """See ServedEndpoint."""

    table = QueueEndpoint
    calls = KindCalls(
        always=("msgget", "msgctl:look"),
        source=("msgrcv", "tgkill", "rt_sigaction", *THREADS),
        sink=("msgsnd", *THREADS),
        exact_sink=("msgsnd", "msgrcv:copy", "waitid", "kill"),
        forks=True,
        configured={"max_bytes": ("msgctl:limit",)},
    )
    sink_cells = cells.SINK_CELLS
    source_cells = cells.SOURCE_CELLS
    owner: QueueOwner
    counter: Counts | None

    def __init__(self, assignment: Assignment, endpoint: QueueEndpoint) -> None:
        """Make each key that is a path's: the path belongs to the container, and the host's /proc leads to it."""
        super().__init__(assignment, endpoint)
        root = container_root(assignment.container_pid)
        keys = [end.key if end else 0 for end in (endpoint.out, endpoint.in_)]
        try:
            (self.out, steps_out), (self.in_, steps_in) = (key_and_makers(key, root) for key in keys)
        except OSError as error:
            path = os.fsdecode(error.filename or b"")
            why = os.strerror(error.errno or 0)
            raise Gone(
                f"{path}, of which the queue's key is made: {why}; it is looked for again (make it in the container)"
            ) from None
        paths = [os.fsencode(key.path) if isinstance(key, FtokKey) else b"" for key in keys]
        self._made_of = tuple(zip(paths, (steps_out, steps_in), strict=True))

    def surroundings(self, ids: IdMap, memory: UserRecord) -> QueueSurroundings:
        """See ServedEndpoint."""
        return QueueSurroundings(self.assignment, ids, memory, (self.out, self.in_), self._made_of)

    def joined(self, agent: AgentApi, entered: Entered, counter: Counts | None) -> None:  # noqa: ARG002  (no file)
        """See ServedEndpoint."""
        self.counter = counter
        is_configured = self.assignment.agent.user is not None
        self.owner = QueueOwner(agent, (self.out, self.in_), is_user_configured=is_configured)

    def source(self, agent: AgentApi, journal: SourceJournal) -> Source:
        """See ServedEndpoint."""
        if self.endpoint.create and self.out != self.in_:  # else the sink has sent into it
            queue = WatchedKey("out", self.out, self.owner)
            UnusedQueue(agent, "out", shown(self.out), queue, (journal, cells.MADE))
        if self.counter is not None:
            return CountedQueueSource(agent, self.endpoint, self.out, journal, self.counter, self.owner)
        return QueueSource(agent, self.endpoint, self.out, journal, self.owner)

    def sink(self, agent: AgentApi, journal: SinkJournal) -> Sink:
        """See ServedEndpoint."""
        route = self.assignment.route
        if self.endpoint.create:
            queue = WatchedKey("in", self.in_, self.owner)
            UnusedQueue(agent, "in", shown(self.in_), queue, (journal, cells.MADE))
        if self.counter is not None:
            sent = SentCount(journal, self.counter)
            return CountedQueueSink(agent, self.endpoint, self.in_, sent, route.in_doubt, self.owner)
        leave_counter(agent, journal, route.in_doubt)
        if route.delivery is Delivery.EXACTLY_ONCE:
            return ExactQueueSink(agent, self.endpoint, self.in_, journal, route.in_doubt, self.owner)
        return QueueSink(agent, self.endpoint, self.in_, journal, self.owner)

    def ends(self) -> dict[str, list[str]]:
        """See ServedEndpoint."""
        return places.of_queues(self.out, self.in_)

    @staticmethod
    def number(endpoint: QueueEndpoint, end: str, root: str) -> int:
        """See ServedEndpoint."""
        configured = endpoint.out if end == "out" else endpoint.in_
        assert configured is not None  # noqa: S101  (asked about a place that it has)
        return numeric_key(configured.key, root)
