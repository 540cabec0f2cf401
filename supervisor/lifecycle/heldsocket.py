"""Holds the socket that an agent receives from, so that a killed agent's successor finds in it what was not read.

The supervisor makes the socket, and its agent binds it to a path in the container: the two share one open socket, as
they share the socketpair of a route. The supervisor never reads from it. A bound socket keeps the container's file
system alive, so it is dropped when the container ends. It can be bound once only: if the path no longer leads to it,
the agent asks for a new one.
"""

from __future__ import annotations

import socket

from nsbridge.config.schema import Endpoint


class HeldSocket:
    """The socket of one agent, made when it is needed."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._kind = endpoint.held_socket
        self._socket: socket.socket | None = None

    def fd(self) -> int:
        """Return its descriptor for a new agent; -1 if the agent needs none. Raises OSError."""
        if self._kind is None:
            return -1
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, self._kind)
            self._socket.setblocking(False)
        return self._socket.fileno()

    def drop(self) -> None:
        """Close it: the next agent gets a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
