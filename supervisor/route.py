"""A route: two agents and the socketpair between them, whose both ends the supervisor keeps and never reads.

A restarted agent gets the same end again, so what its neighbour has sent meanwhile is still there.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from nsbridge.config.schema import RouteConfig
from nsbridge.supervisor.lifecycle import State
from nsbridge.supervisor.managed import Managed
from nsbridge.supervisor.services import Services

_SOCKET_BUFFER = 1 << 20  # bytes; the kernel gives what net.core.wmem_max allows


class Route:
    """Two managed agents. `on_change` is called whenever one's state is another."""

    def __init__(self, services: Services, config: RouteConfig, on_change: Callable[[Managed], None]) -> None:
        self.config = config
        self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in self._ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        first, second = (
            Managed(services, config, agent, end.fileno()) for agent, end in zip(config.agents, self._ends, strict=True)
        )
        self.agents = (first, second)
        self._on_change = on_change
        for agent in self.agents:
            agent.neighbour = self

    def drained(self) -> None:
        """An agent has nothing in flight any more: let go of all that are to stop, once none of them has."""
        stopping = [other for other in self.agents if other.state is State.STOPPING]
        if all(other.is_drained for other in stopping):
            for other in stopping:
                other.exit()

    def changed(self, agent: Managed) -> None:
        """Pass it on; and where the other agent has no process, nothing can be handed over: do not wait for it."""
        for other in self.agents:
            if other.state is State.STOPPING and all(a.pid is None for a in self.agents if a is not other):
                other.exit()
        self._on_change(agent)

    def is_stopped(self) -> bool:
        """Whether both agents have stopped."""
        return all(agent.state is State.STOPPED for agent in self.agents)

    def close(self) -> None:
        """Give the socketpair back; both agents have stopped."""
        for agent in self.agents:
            agent.forget()
        for end in self._ends:
            end.close()
