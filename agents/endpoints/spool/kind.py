"""The `spool` endpoint: its entry in the registry."""

from __future__ import annotations

from nsbridge.agents.confinement import landlock
from nsbridge.agents.confinement.callrules import TREE, KindCalls
from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.endpoints.kind import ServedPaths
from nsbridge.agents.endpoints.spool import cells, notes
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.endpoints.spool.sink import SpoolSink
from nsbridge.agents.endpoints.spool.source import SpoolSource
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal


class ServedSpool(ServedPaths[SpoolEndpoint]):
    """See ServedEndpoint."""

    table = SpoolEndpoint
    calls = KindCalls(
        always=(*TREE, "renameat2"),
        source=("fcntl:lease", "sched_yield", "statx"),
        needs_abi={"done": landlock.MOVES_FROM, "error": landlock.MOVES_FROM},
        configured_rights={"error": landlock.SPECIAL_FILES},
    )
    source_cells = cells.SOURCE_CELLS
    sink_cells = cells.SINK_CELLS
    describe = staticmethod(notes.described)

    def source(self, agent: AgentApi, journal: SourceJournal) -> SpoolSource:
        """See ServedEndpoint."""
        across = self.across
        return SpoolSource(
            agent, self.tree, self.endpoint, journal, kept_name=across.kept_name if across.keeps_names else None
        )

    def sink(self, agent: AgentApi, journal: SinkJournal) -> SpoolSink:
        """See ServedEndpoint."""
        return SpoolSink(agent, self.tree, self.endpoint, journal)
