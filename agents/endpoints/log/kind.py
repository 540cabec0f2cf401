"""The `log` endpoint: its entry in the registry."""

from __future__ import annotations

from nsbridge.agents.confinement.callrules import TREE, KindCalls
from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.endpoints.kind import ServedPaths
from nsbridge.agents.endpoints.log import cells, notes, tail
from nsbridge.agents.endpoints.log.config import LogEndpoint
from nsbridge.agents.endpoints.log.sink import LogSink
from nsbridge.agents.endpoints.log.source import LogSource
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal


class ServedLog(ServedPaths[LogEndpoint]):
    """See ServedEndpoint."""

    table = LogEndpoint
    calls = KindCalls(always=TREE, source=("fcntl:lease", "statx"))
    source_cells = cells.SOURCE_CELLS
    sink_cells = cells.SINK_CELLS
    describe = staticmethod(notes.described)
    missed = staticmethod(tail.missed)

    def source(self, agent: AgentApi, journal: SourceJournal) -> LogSource:
        """See ServedEndpoint."""
        return LogSource(agent, self.tree, self.endpoint, journal)

    def sink(self, agent: AgentApi, journal: SinkJournal) -> LogSink:
        """See ServedEndpoint."""
        return LogSink(agent, self.tree, self.endpoint, journal, self.assignment.route.in_doubt)
