"""Notices that the file behind a queue's key `{ path, proj }` was replaced; then the agent enters again.

ftok(3) makes the key from the file's inode, so a program that replaces the file makes another queue, and the old one
may stay. A queue's agent cannot see that: it is in the ipc namespace, and its root is the directory of its dead
letters. So a child of the supervisor looks every EVERY seconds, as an agent does before it enters:

* It opens the path with O_PATH only, within the container's root. A path that hangs costs the child, which is killed
  after ANSWER_LIMIT; the next look begins behind the agent that it hung at.
* A file system of the container's can keep even a killed child (request_wait_answer in fs/fuse/dev.c). That child is
  left until it ends, and its path is not asked about meanwhile: so at most one child hangs for each path.
* An agent that held a descriptor of the container's files could look itself, but a compromised one would have it too.
  One that entered anew from time to time would interrupt every route that has nothing to notice.
* A path that is missing changes nothing: the file may be on its way, and the queue is still there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from nsbridge.agents import places
from nsbridge.agents.endpoints import kinds
from nsbridge.agents.endpoints.kind import container_root
from nsbridge.agents.loop import Loop
from nsbridge.config.schema import Endpoint
from nsbridge.supervisor.host.spawn import LineChild
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.process import AgentProcess
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.routes.roster import Roster

EVERY = 5.0  # seconds
ANSWER_LIMIT = 5.0  # seconds for all answers
DIES_WITHIN = 0.2  # seconds after SIGKILL; else it hangs in the kernel


class Asked(NamedTuple):
    """One end of one agent: its process while it was asked, its path, and the number that the agent uses."""

    agent: ManagedAgent
    process: AgentProcess
    end: str
    path: str
    number: str

    @property
    def place(self) -> tuple[str, str]:
        """Return the agent's name and the path."""
        return self.agent.config.name, self.path


class KeyWatch:
    """Looks at the keys of all agents that run, in one child at a time, once `wake` was called."""

    def __init__(self, services: Services, roster: Roster) -> None:
        self._loop = services.loop
        self._log = services.log
        self._roster = roster
        self._first = 0  # which is asked first
        self._look: _Look | None = None
        self._hanging: dict[_Look, tuple[str, str]] = {}  # looks that cannot be killed, and the place of each
        self._is_due = False

    def wake(self) -> None:
        """Start to look, until no agent has a key that is made of a path."""
        if not self._is_due and self._look is None and any(_made_of(agent) for agent in self._roster.agents):
            self._is_due = True
            self._loop.call_later(EVERY, self._begin)

    def close(self) -> None:
        """End the children."""
        for look in (self._look, *self._hanging):
            if look is not None:
                look.child.abandon()

    def learn(self, asked: Asked, number: str) -> None:
        """Restart the agent if its key has changed to `number`. Only a look calls this.

        `number` is empty if there is no file; then nothing happens.
        """
        agent = asked.agent
        if not number or number == asked.number or agent.process is not asked.process:
            return
        if agent.state is not State.RUNNING:
            return
        self._log.warning(
            agent.config.name,
            f"{asked.path} was replaced: the key made of it is {int(number):#x} now, it was "
            f"{int(asked.number):#x}; the agent enters anew",
        )
        agent.restart()

    def ended(self, look: _Look) -> None:
        """Note that the look's child is gone. Only a look calls this."""
        self._hanging.pop(look, None)
        if look is self._look:
            self._go_on_behind(look)

    def give_up(self, look: _Look) -> None:
        """Give up a look whose child was killed and does not end. Only a look calls this."""
        has_all = look.answered == len(look.asked)
        self._hanging[look] = ("", "") if has_all else look.asked[look.answered].place
        self._go_on_behind(look)

    def _go_on_behind(self, look: _Look) -> None:
        count = len(look.asked)
        self._first = 0 if look.answered == count else (self._first + look.answered + 1) % count
        self._look = None
        self.wake()

    def _begin(self) -> None:
        self._is_due = False
        hanging = set(self._hanging.values())
        questions = (question for agent in self._roster.agents for question in _questions(agent))
        asked = [question for question in questions if question.place not in hanging]
        first = self._first % len(asked) if asked else 0
        if not asked or self._roster.is_ending:
            self.wake()
            return
        try:
            self._look = _Look(self._loop, [*asked[first:], *asked[:first]], self)
        except OSError:
            self.wake()


class _Look:
    """One child, and what it is asked, in order."""

    def __init__(self, loop: Loop, asked: Sequence[Asked], watch: KeyWatch) -> None:
        self.asked = asked
        self.answered = 0
        self._loop = loop
        self._watch = watch
        ends = [
            (container_root(question.agent.container_pid or 0), question.agent.config.endpoint, question.end)
            for question in asked
        ]
        self.child = LineChild(loop, partial(_answer, ends), self)
        self._limit = loop.call_later(ANSWER_LIMIT, self._too_late)

    def line_received(self, line: bytes) -> None:
        """See LineListener: the number of the question, the key."""
        which, _, number = line.partition(b" ")
        self.answered = int(which) + 1
        self._watch.learn(self.asked[int(which)], number.decode("ascii"))

    def child_ended(self, code: int) -> None:  # noqa: ARG002  (any code)
        """See LineListener."""
        self._limit.cancel()
        self._watch.ended(self)

    def _too_late(self) -> None:
        self.child.kill()
        self._limit = self._loop.call_later(DIES_WITHIN, lambda: self._watch.give_up(self))


def _made_of(agent: ManagedAgent) -> dict[str, str]:
    """Return the paths that identities of the agent's ends are made of, by end."""
    found = agent.config.endpoint.places().items()
    return {end: place.made_of for end, place in found if place.made_of}


def _questions(agent: ManagedAgent) -> list[Asked]:
    """Return the questions about an agent that serves and has reported its numbers."""
    process, paths = agent.process, _made_of(agent)
    if not paths or process is None or agent.state is not State.RUNNING:
        return []
    reported = places.parse(process.places)
    return [
        Asked(agent, process, end, path, reported[end][0])
        for end, path in paths.items()
        if end in reported and reported[end] and reported[end][0].isascii() and reported[end][0].isdecimal()
    ]


def _answer(ends: Sequence[tuple[str, Endpoint, str]], writer: int) -> int:
    """Report, as the child, one line for each end; without a number if there is no file."""
    for which, (root, endpoint, end) in enumerate(ends):
        try:
            number = str(kinds.named(endpoint.name).number(endpoint, end, root))
        except OSError:
            number = ""
        os.write(writer, f"{which} {number}\n".encode("ascii"))
    return 0
