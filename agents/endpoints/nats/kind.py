"""The `nats` endpoint: its entry in the registry.

Every agent's process has this module; asyncio and nats-py are loaded by an agent of this kind only, in its own process,
after the fork and before it enters. They cost it about 20 MB and 0.3 s, and other agents and the supervisor nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from nsbridge.agents.confinement.callrules import Condition, KindCalls, Must, Rule
from nsbridge.agents.confinement.entry import Assignment, RefusedForGood
from nsbridge.agents.endpoints.base import AgentApi, Sink, Source
from nsbridge.agents.endpoints.kind import ServedEndpoint
from nsbridge.agents.endpoints.nats import cells
from nsbridge.agents.endpoints.nats.config import NatsEndpoint
from nsbridge.agents.endpoints.nats.subjects import is_literal
from nsbridge.agents.endpoints.nats.surroundings import NatsSurroundings
from nsbridge.agents.identity.identity import IdMap, UserRecord
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal

if TYPE_CHECKING:
    from nsbridge.agents.endpoints.nats.link import Link

_AF_INET, _AF_INET6, _SOCK_STREAM = 2, 10, 1
_SOCK_FLAGS = 0o2004000  # SOCK_NONBLOCK, SOCK_CLOEXEC
_KINDS = (_SOCK_STREAM, _SOCK_STREAM | 0o4000, _SOCK_STREAM | 0o2000000, _SOCK_STREAM | _SOCK_FLAGS)
_RULES = {
    "socket:tcp": Rule(
        "socket",
        "a connection to a NATS server",
        (
            Condition(0, Must.BE_ONE_OF, (_AF_INET, _AF_INET6), "AF_INET, AF_INET6"),
            Condition(1, Must.BE_ONE_OF, _KINDS, "SOCK_STREAM"),
        ),
    ),
}


class ServedNats(ServedEndpoint[NatsEndpoint]):
    """See ServedEndpoint."""

    table = NatsEndpoint
    calls = KindCalls(
        always=(*_RULES, "connect", "getpeername", "setsockopt", "shutdown"),
        rules=_RULES,
        numbers={"socket": (41, 198)},
    )
    source_cells = cells.SOURCE_CELLS
    sink_cells = cells.SINK_CELLS

    def __init__(self, assignment: Assignment, endpoint: NatsEndpoint) -> None:
        """Load nats-py, read credentials, and look up the servers' names, while the agent may still do that."""
        super().__init__(assignment, endpoint)
        try:
            from nsbridge.agents.endpoints.nats import prepare  # noqa: PLC0415  (only an agent of this kind loads it)
        except ImportError as error:
            raise RefusedForGood(f'nats-py is not installed ({error}): pip install "nsbridge[nats]"') from None
        self._prepared = prepare.prepare(assignment.agent.name, endpoint)
        self._link: Link | None = None

    def surroundings(self, ids: IdMap, memory: UserRecord) -> NatsSurroundings:
        """See ServedEndpoint."""
        return NatsSurroundings(self.assignment, ids, memory)

    def _linked(self, agent: AgentApi) -> Link:
        if self._link is None:
            self._link = self._prepared.link(agent)
        return self._link

    def source(self, agent: AgentApi, journal: SourceJournal) -> Source:
        """See ServedEndpoint."""
        return self._prepared.source(agent, journal, self._linked(agent), self.assignment.route.window)

    def sink(self, agent: AgentApi, journal: SinkJournal) -> Sink:
        """See ServedEndpoint."""
        return self._prepared.sink(agent, journal, self._linked(agent), self.assignment.route.in_doubt)

    def ends(self) -> dict[str, list[str]]:
        """See ServedEndpoint."""
        return {
            end: [_identity(self.endpoint.servers, subject)] for end, subject in self._subjects() if is_literal(subject)
        }

    def _subjects(self) -> list[tuple[str, str]]:
        ends = (("out", self.endpoint.out), ("in", self.endpoint.in_))
        return [(end, place.subject) for end, place in ends if place is not None]


def _identity(servers: tuple[str, ...], subject: str) -> str:
    """Return the identity of a subject of a cluster, for the supervisor (agents/places.py)."""
    return f"nats/{crc32(' '.join(sorted(servers)).encode()):08x}/{crc32(subject.encode()):08x}"
