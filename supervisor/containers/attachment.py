"""Holds one container for the supervisor: finds it, keeps a pidfd on its init, reports when it ends.

An engine may not answer, so a child asks it while the loop continues (asker.py). What was found is checked: a namespace
that is the host's own is refused unless the configuration asks for the host by name.

If the container does not run, arrivals.py gives hints when to look. Several hints may come for one start, so there is
at most one look in GAP. A hint may also come while an engine is being asked; its answer may be older than the hint, so
another look follows. An engine reports a start once, or in a few steps, so further hints that find nothing are answered
with exponential backoff.
Without hints the container is polled, first after LOOK_FIRST, then with exponential backoff.
"""

from __future__ import annotations

import os
from typing import Protocol

from nsbridge.agents.loop import READABLE, Loop, Timer
from nsbridge.config.schema import Container, Namespace
from nsbridge.supervisor.containers.arrivals import Arrivals, Expectation
from nsbridge.supervisor.containers.asker import Inquiry, Located
from nsbridge.supervisor.containers.engines import engine_of
from nsbridge.supervisor.containers.identity import (
    Ambiguous,
    ContainerProcess,
    ContainerRefused,
    Found,
    NotRunning,
    host_namespace_inodes,
    own_namespace_inode,
)
from nsbridge.supervisor.containers.namespacefile import namespace_file_inode
from nsbridge.supervisor.containers.namewatch import ServedName, watch_name

LOOK_FIRST = 0.1  # seconds from one look to the next, which doubles
LOOK_AT_LEAST_EVERY = {True: 30.0, False: 1.0}  # seconds at the longest: starts are reported, or are not
GAP = 0.005  # seconds between two looks that hints ask for
ENGINE_GAP = (0.02, 0.5)  # the same where an engine is asked, in a child: the first one, the longest
_DOUBLINGS = 10  # from the first to the longest, and more


class Listener(Protocol):
    """Receives what happens. Exactly one of the first three methods is called for each `locate`, at once or later."""

    def container_found(self) -> None:
        """Note that the container runs and may be entered."""

    def container_absent(self, reason: str) -> None:
        """Note that the container does not run; it may start, or start again, later."""

    def container_refused(self, reason: str) -> None:
        """Note that the container must not be entered, or cannot be entered as things are."""

    def container_ended(self, how: str) -> None:
        """Stop serving a container that was found: `how` it ended, or that another one now has its name."""

    def container_may_have_come(self) -> None:
        """Look again: the container may have started."""


class Attachment:
    """One container, held for one agent."""

    def __init__(
        self, loop: Loop, arrivals: Arrivals, container: Container, namespace: Namespace, listener: Listener
    ) -> None:
        self.process: ContainerProcess | None = None
        self.ns_inode: int | None = None
        self.ns_path = ""  # a namespace file without a process; empty otherwise
        self.serves = ""  # the held container's own name, if the configured one is a pattern or a label
        self._loop = loop
        self._arrivals = arrivals
        self._container = container
        self._engine = engine_of(container.kind)
        self._namespace = namespace
        self._listener = listener
        self._inquiry: Inquiry | None = None  # an engine is being asked
        self._expected: Expectation | None = None
        self._look_delay = LOOK_FIRST
        self._looked = 0.0  # when, by the loop's clock
        self._gap = self._first_gap = ENGINE_GAP[0] if self._engine.blocks else GAP
        self._in_vain = 0  # looks that hints asked for, in a row
        self._hint: Timer | None = None  # a look that a hint asked for
        self._hinted_meanwhile = False  # since the engine was asked
        self._is_ambiguous = False  # several match: the end of one is not reported
        self.name_watch: ServedName | None = None  # of a name that can mean another container
        self._only: int | None = None  # start time of the one process that a number meant when it was first seen

    @property
    def init_user(self) -> tuple[int, int]:
        """Return the effective uid and gid of the container's init, ours where there is none."""
        return (self.process.uid, self.process.gid) if self.process else (os.geteuid(), os.getegid())

    def locate(self) -> None:
        """Look for the container, unless a look is under way."""
        if self._inquiry is not None:
            return
        if self.process is not None and self.process.alive():
            self._listener.container_found()  # it was the agent that died
            return
        seen = self._hint is not None
        self._drop_hint()
        self._looked = self._loop.now()
        if self._engine.blocks:
            self._in_vain = self._in_vain + 1 if seen else 0
            too_many = max(0, self._in_vain + 1 - self._engine.steps_of_a_start)
            self._gap = min(self._first_gap * 2.0 ** min(too_many, _DOUBLINGS), ENGINE_GAP[1])
            self._inquiry = self._arrivals.ask(self._container, self._answered, seen=seen)
            return
        try:
            found = self._engine.locate(self._container.name)
        except NotRunning as error:
            self._listener.container_absent(str(error))
        except ContainerRefused as error:
            self._refuse(str(error))
        else:
            self._hold(found)

    def wait(self) -> float:
        """Wait for hints; return the seconds after which to look without one."""
        if self._expected is None or not self._expected.is_watched:
            before, self._expected = self._expected, self._arrivals.expect(self._container, self._hinted)
            if before is not None:
                before.cancel()
        longest = LOOK_AT_LEAST_EVERY[self._expected.is_watched and not self._is_ambiguous]
        delay = min(self._look_delay, longest)
        self._look_delay = min(2 * delay, longest)
        return delay

    def abandon(self) -> None:
        """Stop waiting, and drop the answer that may be under way."""
        self._expect_no_more()
        if self._inquiry is not None:
            self._inquiry.cancel()
            self._inquiry = None

    def close(self) -> None:
        """Release the container."""
        self.abandon()
        self._release()

    def _expect_no_more(self) -> None:
        if self._expected is not None:
            self._expected.cancel()
            self._expected = None
        self._drop_hint()
        self._hinted_meanwhile = False

    def _hinted(self) -> None:
        if self._expected is None:
            return
        if self._inquiry is not None:
            self._hinted_meanwhile = True
        elif self._hint is None:
            self._hint = self._loop.call_at(self._looked + self._gap, self._listener.container_may_have_come)

    def _drop_hint(self) -> None:
        if self._hint is not None:
            self._hint.cancel()
            self._hint = None

    def _answered(self, answer: Located) -> None:
        self._inquiry = None
        self._is_ambiguous = isinstance(answer, Ambiguous)
        match answer:
            case Found():
                self._hold(answer)
            case NotRunning():
                self._listener.container_absent(str(answer))
                if self._hinted_meanwhile:
                    self._hinted_meanwhile = False
                    self._hinted()
            case _:
                self._refuse(str(answer))

    def _hold(self, found: Found) -> None:
        self._release()
        if found.pid and not self._engine.comes_back:
            if self._only not in (None, found.start_time):
                self._refuse(
                    f"process {found.pid} has ended, and its number belongs to another one now: name the new process"
                )
                return
            self._only = found.start_time
        try:
            if found.pid:
                process = ContainerProcess.open(found)
                self.process = process
                self._loop.watch(process.pidfd, READABLE, lambda _events: self._ended())
                self.ns_inode = process.namespace_inode(self._namespace)
            elif found.ns_path:
                self.ns_path = found.ns_path
                self.ns_inode = namespace_file_inode(found.ns_path, self._namespace)
            else:
                self.ns_inode = own_namespace_inode(self._namespace)
        except NotRunning as error:
            self._release()
            self._listener.container_absent(str(error))
            return
        except ContainerRefused as error:
            self._release()
            self._refuse(str(error))
            return
        if self.ns_inode in host_namespace_inodes(self._namespace) and not self._container.kind.is_host:
            self._release()
            self._refuse(
                f"the {self._namespace} namespace of {self._container} is the host's own; "
                'if that is what you want, write container = "host"'
            )
            return
        self._settle(found)

    def _settle(self, found: Found) -> None:
        self._expect_no_more()
        self.serves = found.serves
        self._look_delay = LOOK_FIRST
        self._gap, self._in_vain = self._first_gap, 0
        self.name_watch = watch_name(self._loop, self._arrivals, self._container, found, self._ended)
        self._listener.container_found()

    def _refuse(self, reason: str) -> None:
        self._expect_no_more()
        self._listener.container_refused(reason)

    def _ended(self, how: str = "has ended") -> None:
        self._release()
        self._listener.container_ended(how)

    def _release(self) -> None:
        if self.name_watch is not None:
            self.name_watch.close()
            self.name_watch = None
        if self.process is not None:
            self._loop.unwatch(self.process.pidfd)
            self.process.close()
            self.process = None
        self.ns_inode = None
        self.ns_path = ""
        self.serves = ""
