"""The `mqueue` endpoint: its entry in the registry.

The calls are made by ctypes, not by the package posix_ipc. posix_ipc returns a message as a new object, but a message
must land in the journal, or a kill would lose it. Besides, a call that keeps the GIL takes less time.
"""

from __future__ import annotations

from nsbridge.agents.confinement.callrules import Condition, KindCalls, Must, Rule
from nsbridge.agents.confinement.entry import Entered
from nsbridge.agents.counter import Counts
from nsbridge.agents.endpoints.base import AgentApi, Sink, Source
from nsbridge.agents.endpoints.evidence import evidence
from nsbridge.agents.endpoints.kind import ServedEndpoint
from nsbridge.agents.endpoints.mqueue.calls import NUMBERS
from nsbridge.agents.endpoints.mqueue.cells import MADE, SINK_CELLS, SOURCE_CELLS
from nsbridge.agents.endpoints.mqueue.config import MqueueEndpoint
from nsbridge.agents.endpoints.mqueue.mqueue import MqueueOwner, OpenQueue
from nsbridge.agents.endpoints.mqueue.sink import MqueueSink
from nsbridge.agents.endpoints.mqueue.source import MqueueSource
from nsbridge.agents.endpoints.mqueue.surroundings import MqueueSurroundings
from nsbridge.agents.endpoints.mqueue.unused import WatchedName
from nsbridge.agents.endpoints.unused import UnusedQueue
from nsbridge.agents.identity.identity import IdMap, UserRecord
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal

_ONLY_LOOK = (Condition(1, Must.BE_ONE_OF, (0,), "no new attributes"),)


class ServedMqueue(ServedEndpoint[MqueueEndpoint]):
    """See ServedEndpoint."""

    table = MqueueEndpoint
    calls = KindCalls(
        always=(
            "mq_open",
            "mq_getsetattr",
            "inotify_init1",
            "inotify_add_watch",
            "inotify_rm_watch",
            "chdir",
            "fchdir",
        ),
        source=("mq_timedreceive",),
        sink=("mq_timedsend",),
        configured={"create": ("fchmod",)},
        rules={
            "mq_open": Rule("mq_open", "find or make the POSIX queue"),
            "mq_getsetattr": Rule("mq_getsetattr", "look at a POSIX queue's limits", _ONLY_LOOK),
            "mq_timedreceive": Rule("mq_timedreceive", "take messages of a POSIX queue"),
            "mq_timedsend": Rule("mq_timedsend", "hand messages over to a POSIX queue"),
        },
        numbers=NUMBERS,
    )
    sink_cells = SINK_CELLS
    source_cells = SOURCE_CELLS
    owner: MqueueOwner
    counter: Counts | None
    own_fds: int

    def surroundings(self, ids: IdMap, memory: UserRecord) -> MqueueSurroundings:
        """See ServedEndpoint."""
        return MqueueSurroundings(self.assignment, ids, memory, self._names())

    def joined(self, agent: AgentApi, entered: Entered, counter: Counts | None) -> None:
        """See ServedEndpoint."""
        self.counter = counter
        self.own_fds = entered.own_fds
        is_configured = self.assignment.agent.user is not None
        self.owner = MqueueOwner(agent, self._names(), is_user_configured=is_configured)

    def source(self, agent: AgentApi, journal: SourceJournal) -> Source:
        """See ServedEndpoint."""
        source = MqueueSource(agent, self.endpoint, journal, self.counter, self.owner, self.own_fds)
        self._watch(agent, "out", source.queue, journal)
        return source

    def sink(self, agent: AgentApi, journal: SinkJournal) -> Sink:
        """See ServedEndpoint."""
        found = evidence(agent, journal, self.counter, self.assignment.route)
        sink = MqueueSink(agent, self.endpoint, found, self.owner, self.own_fds)
        self._watch(agent, "in", sink.queue, journal)
        return sink

    def ends(self) -> dict[str, list[str]]:
        """See ServedEndpoint: the configuration has their identities."""
        return {}

    def _watch(self, agent: AgentApi, side: str, queue: OpenQueue, journal: SourceJournal | SinkJournal) -> None:
        if self.endpoint.create:
            UnusedQueue(agent, side, queue.what, WatchedName(queue), (journal, MADE))

    def _names(self) -> list[str]:
        return [end.name for end in (self.endpoint.out, self.endpoint.in_) if end is not None]
