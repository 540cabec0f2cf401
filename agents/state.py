"""What an agent opens of the state directory before it joins a namespace: its journals, and the place of dead letters.

STATE_DIR/journal/ROUTE/AGENT.out    what it has taken (if it has a source)
STATE_DIR/journal/ROUTE/AGENT.in     what it has handed over (if it has a sink)
STATE_DIR/dead/ROUTE/AGENT/          what it could never hand over
STATE_DIR/dead/ROUTE/.retry/AGENT/   what it is to take again, because the other agent could not (if it has a source)
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nsbridge.agents import belonging, journal, linux, sinkjournal
from nsbridge.agents.journal import SourceJournal
from nsbridge.agents.sinkjournal import SinkJournal
from nsbridge.config.schema import MAX_MESSAGE, AgentConfig, FileEndpoint, LogEndpoint, QueueEndpoint, Window

_NOTE_SIZE = 512  # bytes that the record of a note takes at most
_RETRIED = 256 << 10  # bytes for dead letters, which are kept whole also where files are only noted
_RECORD = 40  # bytes of a record beside its message, at most


@dataclass(frozen=True, slots=True)
class State:
    """Open files; each journal is there if the agent has that side."""

    source: SourceJournal | None
    sink: SinkJournal | None
    dead: int  # descriptor of the dead letters' directory
    retry: int  # of the directory of those that are to be taken again, -1 without a source

    @property
    def given(self) -> list[int]:
        """Directories that are to belong to the agent."""
        return [fd for fd in (self.dead, self.retry) if fd >= 0]

    @property
    def source_fd(self) -> int:
        """Of the journal's file, -1 without one."""
        return self.source.fd if self.source else -1

    @property
    def sink_fd(self) -> int:
        """Of the journal's file, -1 without one."""
        return self.sink.fd if self.sink else -1


def open_state(state_dir: str, agent: AgentConfig, window: Window, report: Callable[[str], None]) -> State:
    """Open them, making what is missing; waits until no earlier agent holds them.

    Raises OSError; entry.Refused if what is pending was taken by another endpoint.
    """
    route, _, name = agent.name.partition(":")
    journal_path(state_dir, agent.name, "out").parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    source, sink, retry = None, None, -1
    if agent.endpoint.out:
        source = journal.open_source(
            str(journal_path(state_dir, agent.name, "out")), window.messages + 3, _ring(agent, window), report
        )
        belonging.claim_source(source, agent.endpoint)
        retry = _open_directory(Path(state_dir, "dead", route, ".retry", name))
    if agent.endpoint.in_:
        sink = sinkjournal.open_sink(str(journal_path(state_dir, agent.name, "in")), report)
        belonging.claim_sink(sink, agent.endpoint)
    return State(source, sink, _open_directory(Path(state_dir, "dead", route, name)), retry)


def bound_files(agent: AgentConfig) -> None:
    """Let no file that the agent writes grow beyond the longest message, once its journals are there.

    It writes dead letters, and what its endpoint is: a log may be longer than any limit, so its agent has none. Beyond
    it a write fails with EFBIG (Python ignores SIGXFSZ). A compromised agent fills less of `state_dir` with one file.
    """
    if not isinstance(agent.endpoint, LogEndpoint):
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        most = MAX_MESSAGE if hard == resource.RLIM_INFINITY else min(MAX_MESSAGE, hard)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def journal_path(state_dir: str, agent: str, side: str) -> Path:
    """Of `agent` (ROUTE:AGENT), for its `out` or `in` side."""
    route, _, name = agent.partition(":")
    return Path(state_dir, "journal", route, f"{name}.{side}")


def _open_directory(path: Path) -> int:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)  # mkdir's mode is for the last name only
    return linux.detached(str(path))  # a descriptor of the host in hostile hands: nothing but this is to be reached


def longest(agent: AgentConfig, window: Window) -> int:
    """Bytes of the longest message that its source's journal can keep whole."""
    return min(_ring(agent, window) - _RECORD, MAX_MESSAGE)


def _ring(agent: AgentConfig, window: Window) -> int:
    """Bytes that hold a full window and one message more, also when the ring's end does not fit one."""
    endpoint = agent.endpoint
    if not isinstance(endpoint, QueueEndpoint | FileEndpoint):
        return 2 * window.messages * _NOTE_SIZE + _RETRIED
    return window.bytes + 2 * endpoint.max_message + window.messages * _RECORD
