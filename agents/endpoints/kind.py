"""Defines what an endpoint kind is to the agent that serves it. agents/endpoints/kinds.py is the registry."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar, Generic, TypeVar

from nsbridge.agents import places
from nsbridge.agents.confinement.callrules import KindCalls
from nsbridge.agents.confinement.entry import Assignment, Entered
from nsbridge.agents.counter import Counts
from nsbridge.agents.endpoints.base import AgentApi, Sink, Source
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.identity.identity import IdMap, UserRecord
from nsbridge.agents.identity.surroundings import FileSurroundings, Surroundings
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.config.kind import PathEndpoint
from nsbridge.config.schema import Endpoint

E = TypeVar("E", bound=Endpoint)
P = TypeVar("P", bound=PathEndpoint)


class ServedEndpoint(ABC, Generic[E]):
    """The endpoint of one agent. Each kind has a subclass, whose class attributes hold for every agent of the kind."""

    table: ClassVar[type[Endpoint]]  # its configuration
    calls: ClassVar[KindCalls]  # what the kernel allows its agents beyond what it allows every agent
    source_cells: ClassVar[Collection[int]] = ()  # the cells that it uses of a source's journal (KIND_CELLS)
    sink_cells: ClassVar[Collection[int]] = ()  # and of a sink's

    def __init__(self, assignment: Assignment, endpoint: E) -> None:
        """Find out what only the host's namespaces show: called before the join, as root. Raises Gone."""
        self.assignment = assignment
        self.endpoint = endpoint

    @property
    def across(self) -> Endpoint:
        """Return the endpoint of the route's other agent."""
        mine = self.assignment.agent.name
        return next(agent.endpoint for agent in self.assignment.route.agents if agent.name != mine)

    @abstractmethod
    def surroundings(self, ids: IdMap, memory: UserRecord) -> Surroundings:
        """Return what decides the agent's user. Called before the join."""

    def joined(self, agent: AgentApi, entered: Entered, counter: Counts | None) -> None:
        """Prepare what both sides need. Called after the join, as the agent's user, before `source` and `sink`.

        `counter` is the kernel's count of the agent's messages, if there is one (schema.Evidence).
        """

    @abstractmethod
    def source(self, agent: AgentApi, journal: SourceJournal) -> Source:
        """Return the `out` side."""

    @abstractmethod
    def sink(self, agent: AgentApi, journal: SinkJournal) -> Sink:
        """Return the `in` side."""

    @abstractmethod
    def ends(self) -> dict[str, list[str]]:
        """Return the identities of its ends, for the supervisor (agents/places.py). Called after the join."""

    @staticmethod
    def describe(note: bytes, seq: int, /) -> tuple[int, str]:
        """Describe a note of message `seq` to a person: return the message's bytes, and where it is.

        Only for a kind that keeps notes. Raises struct.error, ValueError or IndexError for a damaged note.
        """
        raise ValueError(f"message {seq} is no note: {note!r}")

    @staticmethod
    def missed(cells: Sequence[int], taken: int) -> tuple[int, int]:  # noqa: ARG004  (most kinds miss nothing)
        """Return how many files, and at least how many bytes, a source could not read, by its journal's cells."""
        return 0, 0

    @staticmethod
    def number(endpoint: E, end: str, root: str) -> int:
        """Return the identity of an end that is made of a file (Place.made_of) below `root`. Raises OSError."""
        raise ValueError(f"{endpoint.name}: {end} is not made of a file ({root})")


class ServedPaths(ServedEndpoint[P]):
    """Common base of the kinds whose ends are paths."""

    tree: Tree

    def surroundings(self, ids: IdMap, memory: UserRecord) -> Surroundings:
        """See ServedEndpoint."""
        return FileSurroundings(self.assignment, ids, memory)

    def joined(self, agent: AgentApi, entered: Entered, counter: Counts | None) -> None:  # noqa: ARG002
        """See ServedEndpoint."""
        ends = [os.fsencode(place.path) for place in self.endpoint.places().values() if place.path]
        self.tree = Tree(entered.own_fds, entered.confined.granted, agent.log, entered.around, agent.container, ends)

    def ends(self) -> dict[str, list[str]]:
        """See ServedEndpoint."""
        return places.of_files(self.endpoint)


def container_root(pid: int) -> str:
    """Return the path of a container's root, by its init; of the host's root if `pid` is 0."""
    return f"/proc/{pid}/root" if pid else "/"
