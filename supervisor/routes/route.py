"""A route: two agents and the socketpair between them, whose both ends the supervisor keeps and never reads.

A restarted agent gets the same end again, so what its neighbour has sent meanwhile is still there.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from nsbridge.config.schema import RouteConfig
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.evidence import COUNTER
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.routes import loops
from nsbridge.supervisor.routes.loops import Circles, Serving

_NOTED_EVERY = 0.4  # seconds between two reports of an agent that are looked at
_SOCKET_BUFFER = 1 << 20  # bytes; the kernel gives what net.core.wmem_max allows


class Route:
    """Two managed agents. The route calls `on_change` whenever the state of one changes."""

    def __init__(
        self, services: Services, config: RouteConfig, circles: Circles, on_change: Callable[[ManagedAgent], None]
    ) -> None:
        self.config = config
        self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in self._ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        first, second = (
            ManagedAgent(services, config, agent, end.fileno())
            for agent, end in zip(config.agents, self._ends, strict=True)
        )
        self.agents = (first, second)
        self.directions = [ends for ends in ((first, second), (second, first)) if _goes(*ends)]  # (source, sink)
        self.is_leaving = False  # it ends, and is then dropped
        self._circles = circles
        self._events = services.events
        self._log = services.log
        self._blocked: dict[str, str] = {}  # by the agent's name, the reason that was logged last
        self._noted_at: dict[str, float] = {}  # by the agent's name, when it last reported a reason
        self._loop = services.loop
        self._on_change = on_change
        for agent in self.agents:
            agent.neighbour = self

    def drained(self) -> None:
        """Have the stopping agents exit, if none has anything in flight. An agent calls this when it has drained."""
        stopping = [other for other in self.agents if other.state is State.STOPPING]
        if all(other.is_drained for other in stopping):
            for other in stopping:
                other.exit()

    def forbids(self, agent: ManagedAgent) -> str:
        """Return the reason why the two agents must not serve together (loops.py); then the other one ends too."""
        reason = loops.in_route(self._serving())
        if reason:
            self._refuse_others(agent, reason)
        return reason

    def _serving(self) -> list[Serving]:
        return [
            Serving(
                self.config,
                agent.config,
                agent.attachment.ns_inode,
                agent.process.places if agent.process else None,
                is_counted=agent.evidence == COUNTER,
            )
            for agent in self.agents
            if agent.attachment.ns_inode is not None
        ]

    def _refuse_others(self, agent: ManagedAgent | None, reason: str) -> None:
        for other in self.agents:
            if other is not agent and other.process is not None and other.state is State.RUNNING:
                other.process.last_words = reason
                other.refuse(reason)

    def _check_circles(self, agent: ManagedAgent) -> None:
        """Look for circles through this agent, after it has reported its ends."""
        serving = self._serving()
        if reason := loops.in_route(serving) or self._circles.ready(agent.config.name, serving, self._log.warning):
            self._refuse_others(None, reason)

    def changed(self, agent: ManagedAgent, before: State) -> None:
        """Report the agent's new state to all who follow. An agent that does not serve feeds no route.

        The kernel may give the inode number of a namespace that is gone to the next one, in another container.
        """
        if before is State.RUNNING:
            self._circles.forget(self.config.name)
        self._events.state(agent.config.name, before.value, agent.state.value, agent.detail)
        if agent.state is State.RUNNING:
            self._check_circles(agent)
        for other in self.agents:  # without a peer process, nothing can be handed over
            if other.state is State.STOPPING and all(a.pid is None for a in self.agents if a is not other):
                other.exit()
        self._on_change(agent)

    def note_blocked(self) -> None:
        """Log once when an agent starts to wait with its messages, when its reason changes, and when it continues."""
        for agent in self.agents:
            self._note_blocked(agent)

    def waits(self, agent: ManagedAgent) -> None:
        """Do the same for one agent that reports a reason; one that reports too often has to wait for the next look."""
        name, now = agent.config.name, self._loop.now()
        if now >= self._noted_at.get(name, 0.0) + _NOTED_EVERY:
            self._noted_at[name] = now
            self._note_blocked(agent)

    def _note_blocked(self, agent: ManagedAgent) -> None:
        name, reason = agent.config.name, "; ".join(agent.scoreboard.reasons())
        if agent.state is not State.RUNNING or reason == self._blocked.get(name, ""):
            return
        self._blocked[name] = reason
        self._events.delivery(name, reason)
        if reason:
            self._log.warning(name, f"blocked: {reason}")
        else:
            self._log.info(name, "continues")

    def retire(self) -> None:
        """Hand over what is in flight and end; the agents do not start again, whatever is asked of them."""
        self.is_leaving = True
        for agent in self.agents:
            agent.hold()

    def release(self) -> None:
        """Start the agents that are wanted, because nothing is in the way any more."""
        for agent in self.agents:
            agent.release()

    @property
    def is_held(self) -> bool:
        """True if its agents may not start."""
        return any(agent.held for agent in self.agents)

    def is_stopped(self) -> bool:
        """True if both agents have stopped and do not start again by themselves."""
        return all(agent.has_stopped for agent in self.agents)

    def close(self) -> None:
        """Give the socketpair back; both agents have stopped."""
        self._circles.forget(self.config.name)
        for agent in self.agents:
            agent.forget()
        for end in self._ends:
            end.close()


def _goes(source: ManagedAgent, sink: ManagedAgent) -> bool:
    return source.config.endpoint.out is not None and sink.config.endpoint.in_ is not None
