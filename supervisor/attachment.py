"""The supervisor's hold on one container: finds it, keeps a pidfd on its init, tells when it ends.

An engine is asked in a child process, because it may not answer; the loop goes on meanwhile. What is found is
checked: a namespace that is the host's own is refused unless the configuration asks for the host by name.
"""

from __future__ import annotations

import os
from typing import Protocol

from nsbridge.agents.loop import READABLE, Loop
from nsbridge.config.schema import Container, ContainerKind, Namespace
from nsbridge.supervisor import containers
from nsbridge.supervisor.containers import ContainerProcess, Found
from nsbridge.supervisor.spawn import Question

LOCATE_LIMIT = 5.0  # seconds for a container engine to answer


_NEVER_BACK = {ContainerKind.PID, ContainerKind.NS}  # a number is given to another process one day


class Listener(Protocol):
    """Who is told. Exactly one of the first three follows each `locate`, at once or later."""

    def container_found(self) -> None:
        """The container runs and may be entered."""

    def container_absent(self, reason: str) -> None:
        """It does not run; it may come (back)."""

    def container_refused(self, reason: str) -> None:
        """It must not be entered, or cannot be as things are."""

    def container_ended(self) -> None:
        """Its init has ended; it was found before."""


class Attachment:
    """One container as one agent needs it."""

    def __init__(self, loop: Loop, container: Container, namespace: Namespace, listener: Listener) -> None:
        self.process: ContainerProcess | None = None
        self.ns_inode: int | None = None
        self.ns_path = ""  # a namespace file without a process; empty otherwise
        self._loop = loop
        self._container = container
        self._namespace = namespace
        self._listener = listener
        self._question: Question | None = None
        self._only: int | None = None  # start time of the one process that a number meant when it was first seen

    @property
    def init_user(self) -> tuple[int, int]:
        """Effective uid and gid of the container's init, ours where there is none."""
        return (self.process.uid, self.process.gid) if self.process else (os.geteuid(), os.getegid())

    def locate(self) -> None:
        """Look for the container, unless it is being looked for."""
        if self._question is not None:
            return
        if self.process is not None and self.process.alive():
            self._listener.container_found()  # it was the agent that died
            return
        if not containers.asks_an_engine(self._container):
            try:
                found = containers.locate(self._container)
            except containers.NotRunning as error:
                self._listener.container_absent(str(error))
            except containers.Refused as error:
                self._listener.container_refused(str(error))
            else:
                self._hold(found)
            return
        try:
            self._question = Question(self._loop, self._ask, self._answered, LOCATE_LIMIT)
        except OSError as error:
            self._listener.container_absent(f"cannot fork to ask {self._container.kind}: {error.strerror}")

    def abandon(self) -> None:
        """The answer that may be under way is not wanted any more."""
        if self._question is not None:
            self._question.abandon()
            self._question = None

    def close(self) -> None:
        """Let go of the container."""
        self.abandon()
        self._release()

    def _ask(self) -> object:
        try:
            found = containers.locate(self._container)
        except containers.NotRunning as error:
            return {"absent": str(error)}
        return [found.pid, found.start_time, found.ns_path]

    def _answered(self, answer: object) -> None:
        self._question = None
        match answer:
            case [int(pid), int(start_time), str(ns_path)]:
                self._hold(Found(pid, start_time, ns_path))
            case {"absent": str(text)}:
                self._listener.container_absent(text)
            case {"error": [_, str(text)]}:
                self._listener.container_refused(text)
            case _:
                self._listener.container_absent(f"{self._container.kind} did not answer in {LOCATE_LIMIT:g} s")

    def _hold(self, found: Found) -> None:
        self._release()
        own = containers.own_namespace_inode(self._namespace)
        if found.pid and self._container.kind in _NEVER_BACK:
            if self._only not in (None, found.start_time):
                self._listener.container_refused(
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
                self.ns_inode = containers.namespace_file_inode(found.ns_path, self._namespace)
            else:
                self.ns_inode = own
        except containers.NotRunning as error:
            self._release()
            self._listener.container_absent(str(error))
            return
        except containers.Refused as error:
            self._release()
            self._listener.container_refused(str(error))
            return
        if self.ns_inode == own and self._container.kind is not ContainerKind.HOST:
            self._release()
            self._listener.container_refused(
                f"the {self._namespace} namespace of {self._container} is the host's own; "
                'if that is what you want, write container = "host"'
            )
            return
        self._listener.container_found()

    def _ended(self) -> None:
        self._release()
        self._listener.container_ended()

    def _release(self) -> None:
        if self.process is not None:
            self._loop.unwatch(self.process.pidfd)
            self.process.close()
            self.process = None
        self.ns_inode = None
        self.ns_path = ""
