"""The two sides of an agent's endpoint, made from its configuration; and what of the container must be known for it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nsbridge.agents import places
from nsbridge.agents.confinement import entry
from nsbridge.agents.confinement.entry import Assignment, Entered
from nsbridge.agents.endpoints import file
from nsbridge.agents.endpoints.base import AgentApi, Sink, Source
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.log import sink as log_sink
from nsbridge.agents.endpoints.log import source as log_source
from nsbridge.agents.endpoints.queue import queue
from nsbridge.agents.endpoints.queue import sink as queue_sink
from nsbridge.agents.endpoints.queue import source as queue_source
from nsbridge.agents.endpoints.queue.counted_sink import CountedQueueSink, leave_counter
from nsbridge.agents.endpoints.queue.counted_source import CountedQueueSource
from nsbridge.agents.endpoints.queue.exact_sink import ExactQueueSink
from nsbridge.agents.endpoints.queue.surroundings import QueueSurroundings
from nsbridge.agents.endpoints.spool import sink as spool_sink
from nsbridge.agents.endpoints.spool import source as spool
from nsbridge.agents.identity.identity import IdMap
from nsbridge.agents.identity.surroundings import FileSurroundings, Surroundings, memory
from nsbridge.agents.identity.walk import Step
from nsbridge.agents.journal.counted import SentCount
from nsbridge.agents.journal.state import AgentFiles
from nsbridge.config.schema import Delivery, Endpoint, FtokKey, LogEndpoint, QueueEndpoint, SpoolEndpoint


class Keys:
    """The numeric keys of a queue endpoint, 0 where there is no such side."""

    def __init__(self, out: int = 0, in_: int = 0, made_of: Sequence[tuple[bytes, Sequence[Step]]] = ()) -> None:
        self.out = out
        self.in_ = in_
        self.made_of = made_of  # paths of which ftok made the keys, and who could make each lead elsewhere


def container_root(pid: int) -> str:
    """Return the path of a container's root, by its init; of the host's root if `pid` is 0."""
    return f"/proc/{pid}/root" if pid else "/"


def queue_keys(assignment: Assignment) -> Keys:
    """Return the keys; call it before the join: ftok makes a key of a container's path, which the host's /proc leads
    to.
    """
    endpoint = assignment.agent.endpoint
    if not isinstance(endpoint, QueueEndpoint):
        return Keys()
    root = container_root(assignment.container_pid)
    keys = [side.key if side else 0 for side in (endpoint.out, endpoint.in_)]
    try:
        (out, steps_out), (in_, steps_in) = (queue.key_and_makers(key, root) for key in keys)
    except OSError as error:
        path = os.fsdecode(error.filename or b"")
        why = os.strerror(error.errno or 0)
        raise entry.Gone(
            f"{path}, of which the queue's key is made: {why}; it is looked for again (make it in the container)"
        ) from None
    paths = [os.fsencode(key.path) if isinstance(key, FtokKey) else b"" for key in keys]
    return Keys(out, in_, tuple(zip(paths, (steps_out, steps_in), strict=True)))


def surroundings(assignment: Assignment, keys: Keys, state: AgentFiles) -> Surroundings:
    """Return the agent's Surroundings. It reads files of the host: call it before the join. Raises Gone."""
    ids = IdMap.of_container(assignment.container_pid, assignment.ns_path)
    remembered = memory(assignment, state.identity)
    if isinstance(assignment.agent.endpoint, QueueEndpoint):
        return QueueSurroundings(assignment, ids, remembered, (keys.out, keys.in_), keys.made_of)
    return FileSurroundings(assignment, ids, remembered)


def ends(endpoint: Endpoint, keys: Keys) -> dict[str, list[str]]:
    """Return where the endpoint's ends are, for the supervisor (supervisor/containers/places.py)."""
    if isinstance(endpoint, QueueEndpoint):
        return places.of_queues(keys.out, keys.in_)
    return places.of_files(endpoint)


def make(
    agent: AgentApi,
    assignment: Assignment,
    entered: Entered,
    keys: Keys,
    state: AgentFiles,
) -> tuple[Source | None, Sink | None]:
    """Return the endpoint's two sides, each if it is configured."""
    endpoint = assignment.agent.endpoint
    if isinstance(endpoint, QueueEndpoint):
        owner = queue.QueueOwner(agent, (keys.out, keys.in_), is_user_configured=assignment.agent.user is not None)
        return (
            _queue_source(agent, endpoint, keys.out, state, owner),
            _queue_sink(agent, assignment, keys.in_, state, owner),
        )
    tree = Tree(entered.own_fds, entered.confined.granted, agent.log, entered.around)
    if isinstance(endpoint, SpoolEndpoint):
        return (
            spool.SpoolSource(agent, tree, endpoint, state.source) if state.source else None,
            spool_sink.SpoolSink(agent, tree, endpoint, state.sink) if state.sink else None,
        )
    if isinstance(endpoint, LogEndpoint):
        return (
            log_source.LogSource(agent, tree, endpoint, state.source) if state.source else None,
            log_sink.LogSink(agent, tree, endpoint, state.sink, assignment.route.in_doubt) if state.sink else None,
        )
    return (
        file.FileSource(agent, tree, endpoint, state.source) if state.source else None,
        file.FileSink(agent, tree, endpoint) if state.sink else None,
    )


def _queue_source(
    agent: AgentApi, endpoint: QueueEndpoint, key: int, state: AgentFiles, owner: queue.QueueOwner
) -> Source | None:
    if state.source is None:
        return None
    if state.counter is not None:
        return CountedQueueSource(agent, endpoint, key, state.source, state.counter, owner)
    return queue_source.QueueSource(agent, endpoint, key, state.source, owner)


def _queue_sink(
    agent: AgentApi, assignment: Assignment, key: int, state: AgentFiles, owner: queue.QueueOwner
) -> Sink | None:
    endpoint, route, sink = assignment.agent.endpoint, assignment.route, state.sink
    assert isinstance(endpoint, QueueEndpoint)  # noqa: S101  (asked by make)
    if sink is None:
        return None
    if state.counter is not None:
        return CountedQueueSink(agent, endpoint, key, SentCount(sink, state.counter), route.in_doubt, owner)
    leave_counter(agent, sink, route.in_doubt)
    if route.delivery is Delivery.EXACTLY_ONCE:
        return ExactQueueSink(agent, endpoint, key, sink, route.in_doubt, owner)
    return queue_sink.QueueSink(agent, endpoint, key, sink, owner)
