"""Opens an agent's files in the state directory (agents/statefiles.py) before it joins a namespace."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Container
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Self

from nsbridge.agents import linux
from nsbridge.agents.counter import Counts
from nsbridge.agents.journal import belonging, journalfile, sinkjournal
from nsbridge.agents.journal.counted import recover_landed
from nsbridge.agents.journal.journalfile import Header
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.agents.journal.waitinglist import NAMES_AT
from nsbridge.agents.statefiles import DEAD, DEAD_RETRY, IDENTITY, JOURNAL, WAITING, journal_path
from nsbridge.config import names, trusted
from nsbridge.config.schema import MAX_MESSAGE, AgentConfig, Window

_IDENTITY_SIZE = 4096  # bytes that are allocated, so that a full disk keeps no agent from noting who it is
_BLOCK = 512  # bytes, the unit of st_blocks
_NOTE_SIZE = 512  # bytes that the record of a note takes at most
_RETRIED = 256 << 10  # bytes for dead letters, which are kept whole also where files are only noted
_RECORD = 40  # bytes of a record beside its message, at most
_ANYBODY = range(1 << 32)  # owners of files that are given to agents


@dataclass(frozen=True, slots=True)
class AgentFiles:
    """Open files; each journal is there if the agent has that side."""

    source: SourceJournal | None
    sink: SinkJournal | None
    dead: int  # descriptor of the dead letters' directory
    dead_retry: int  # of the directory of those that are to be taken again, -1 without a source
    identity: int  # the file that records the agent's user
    counter: Counts | None = None  # the kernel's count of its messages

    @property
    def given(self) -> list[int]:
        """Return the descriptors of the directories that are to belong to the agent."""
        return [fd for fd in (self.dead, self.dead_retry) if fd >= 0]

    @property
    def source_fd(self) -> int:
        """Return the descriptor of the source journal's file; -1 without one."""
        return self.source.fd if self.source else -1

    @property
    def sink_fd(self) -> int:
        """Return the descriptor of the sink journal's file; -1 without one."""
        return self.sink.fd if self.sink else -1


def open_state(
    state_dir: str,
    agent: AgentConfig,
    window: Window,
    report: Callable[[str], None],
    counter: Counts | None = None,
) -> AgentFiles:
    """Open the files, and make missing ones. Wait until no earlier agent holds them.

    Raises OSError; UntrustedError if users other than root can change the files;
    entry.Refused if pending messages were taken by another endpoint.
    """
    source, sink = None, None
    with _Private(state_dir, agent.name) as private:
        dead = private.open_given()
        dead_retry = private.open_given(DEAD_RETRY) if agent.endpoint.out else -1
        identity = private.open_identity()
        waiting = private.open_waiting(size) if agent.endpoint.out and (size := agent.endpoint.waiting_size) else -1
    if agent.endpoint.out:
        source = open_source(
            str(journal_path(state_dir, agent.name, "out")),
            _entries(agent, window),
            _ring(agent, window),
            report,
            settle=lambda made: _take_up(made, counter, report),
        )
        belonging.claim_source(source, agent.endpoint)
        source.waiting_fd = waiting
    if agent.endpoint.in_:
        sink = sinkjournal.open_sink(str(journal_path(state_dir, agent.name, "in")), report)
        belonging.claim_sink(sink, agent.endpoint)
    return AgentFiles(source, sink, dead, dead_retry, identity, counter)


def _take_up(made: SourceJournal, counter: Counts | None, report: Callable[[str], None]) -> None:
    """Publish what had left the queue when the former agent was killed (counted.py)."""
    found = recover_landed(made, counter)
    made.recovered += found.certain
    if found.doubtful:
        report(
            f"a message that left the queue just before a kill may be lost ({found.doubtful} at most): "
            "the kernel's count of the former agent is gone"
        )


def bound_files(agent: AgentConfig) -> None:
    """Limit the size of files that the agent writes to the longest message, after its journals exist.

    The agent writes dead letters and its endpoint's files. If those may have any length, there is no limit. Beyond the
    limit a write fails with EFBIG (Python ignores SIGXFSZ). So a compromised agent fills less
    of `state_dir` with one file, and cannot make its journal longer.
    """
    if not agent.endpoint.writes_any_length:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        most = MAX_MESSAGE if hard == resource.RLIM_INFINITY else min(MAX_MESSAGE, hard)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


class _Private:
    """The directories below state_dir that belong to root, made if missing. So no other user can replace a name.

    It walks to state_dir once, and then uses descriptors, so that a killed agent restarts quickly.
    """

    def __init__(self, state_dir: str, agent: str) -> None:
        route, self._name = names.split(agent)
        self._dead = (
            f"{state_dir}/{DEAD}/{route}"  # text: a Path of each name takes a new agent longer than its calls do
        )
        self._owners = trusted.trusted_owners()
        self._of_route: dict[str, int] = {}
        with ExitStack() as opened:
            top = trusted.open_directory(state_dir, make=0o755)
            opened.callback(os.close, top)
            for kind in (JOURNAL, IDENTITY, DEAD):
                above = self._below(opened, top, f"{state_dir}/{kind}")
                self._of_route[kind] = self._below(opened, above, f"{state_dir}/{kind}/{route}")
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._opened.close()

    def open_given(self, within: str = "") -> int:
        """Open a directory of dead/ROUTE that will belong to the agent.

        No path leads out of it, so a compromised agent reaches nothing else of the host by this descriptor.
        """
        above, directory = self._of_route[DEAD], self._dead
        if within:
            directory = f"{directory}/{within}"
            above = self._below(self._opened, above, directory)
        path = f"{directory}/{self._name}"
        found = self._below(self._opened, above, path, _ANYBODY)
        given = linux.detached(path)
        if not os.path.samestat(os.fstat(given), os.fstat(found)):
            os.close(given)
            raise trusted.UntrustedError(f"{path} was replaced while it was opened; remove it")
        return given

    def open_identity(self) -> int:
        """Open the file that records the agent's user."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._name, flags, 0o600, dir_fd=self._of_route[IDENTITY])
        if os.fstat(fd).st_blocks * _BLOCK < _IDENTITY_SIZE:
            with suppress(OSError):  # no room: the journals report it
                os.posix_fallocate(fd, 0, _IDENTITY_SIZE)
        return fd

    def open_waiting(self, size: int) -> int:
        """Open the list of names that wait, cut to `size` bytes: only a compromised agent makes it longer."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(f"{self._name}.{WAITING}", flags, 0o600, dir_fd=self._of_route[JOURNAL])
        if os.fstat(fd).st_size > NAMES_AT + size:
            os.ftruncate(fd, NAMES_AT + size)
        return fd

    def _below(self, opened: ExitStack, above: int, path: str, owners: Container[int] | None = None) -> int:
        name = path.rpartition("/")[2]
        fd = trusted.open_below(above, name, self._owners if owners is None else owners, path)
        opened.callback(os.close, fd)
        return fd


def largest_journals(agent: AgentConfig, window: Window) -> int:
    """Return the bytes of the largest files that the journals of an agent may be, together."""
    source = Header(journalfile.SOURCE, 0, _entries(agent, window), _ring(agent, window))
    lists = journalfile.PAGE + agent.endpoint.waiting_size if agent.endpoint.waiting_size else 0
    return journalfile.largest(source) + journalfile.PAGE + lists


def longest(agent: AgentConfig, window: Window) -> int:
    """Return the size in bytes of the longest message that its source's journal can keep whole."""
    return min(_ring(agent, window) - _RECORD, MAX_MESSAGE)


def _entries(agent: AgentConfig, window: Window) -> int:
    """Return how many messages the index of a journal has room for, and a few; of notes twice as many.

    A window of delivered files may wait for their removal beside a window of pending ones.
    """
    return (2 if agent.endpoint.notes else 1) * window.messages + 3


def _ring(agent: AgentConfig, window: Window) -> int:
    """Return how many bytes hold a full window and one message more, also if one does not fit the ring's end."""
    endpoint = agent.endpoint
    if endpoint.notes:
        return 2 * window.messages * _NOTE_SIZE + _RETRIED
    return window.bytes + 2 * endpoint.longest + window.messages * _RECORD
