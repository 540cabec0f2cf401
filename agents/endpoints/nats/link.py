"""Keeps an agent connected: one connection at a time, to each server in turn, with backoff; both sides use it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from nsbridge.agents.confinement.entry import Gone
from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.endpoints.nats.config import host_and_port
from nsbridge.agents.endpoints.nats.connection import PATIENCE, Connection, Login
from nsbridge.agents.endpoints.nats.errors import NONSENSE, JetStreamError, Lost, Unready
from nsbridge.agents.endpoints.nats.guest import GuestLoop

_FIRST_DELAY, _MAX_DELAY = 0.05, 2.0  # seconds between attempts
_STALE = 60.0  # seconds without a connection after which the names of servers are looked up again
_REFUSED = ("authorization violation", "authentication")  # words of a server that refuses the credentials


class Side(Protocol):
    """One side of an endpoint, which uses the connection."""

    name: str  # out or in

    async def serve(self, connection: Connection) -> None:
        """Use the connection until it is lost; return to begin again at once.

        Raises Lost; Unready or JetStreamError to begin again after a while.
        """
        ...


class Link:
    """Connects, and lets each side serve."""

    def __init__(self, agent: AgentApi, guest: GuestLoop, servers: list[str], login: Login) -> None:
        self._agent = agent
        self._guest = guest
        self._servers = servers
        self._ports = {host_and_port(url)[1] for url in servers}  # Landlock allows no other port
        self._login = login
        self._sides: list[Side] = []
        self._runs = False
        self._since = agent.loop.now()  # when there was a connection last

    def start(self, side: Side) -> None:
        """Serve this side from now on; connect if no side was served before."""
        self._sides.append(side)
        if not self._runs:
            self._runs = True
            self._guest.attach(self._agent.loop)
            self._guest.begin(self._run())

    async def _run(self) -> None:
        delays, configured, turn = _Delays(), list(self._servers), 0
        while True:
            connection = Connection(self._guest, self._servers[turn % len(self._servers)])
            try:
                await connection.open(self._login)
                self._since = self._agent.loop.now()
                known = (url for url in connection.others if host_and_port(url)[1] in self._ports)
                self._servers = list(dict.fromkeys((*configured, *known)))
                await self._serve(connection, delays)
            except Lost as reason:
                self._show(str(reason))
                self._check_stale(str(reason))
            await connection.close()
            turn += 1
            if turn % len(self._servers) == 0 or delays.is_first:
                await asyncio.sleep(delays.next())

    async def _serve(self, connection: Connection, delays: _Delays) -> None:
        """Serve both sides until the connection is lost. Raises Lost."""
        tasks = [asyncio.create_task(self._serve_side(side, connection, delays)) for side in self._sides]
        try:
            while True:
                done, _ = await asyncio.wait(tasks, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if connection.is_closed():
                    raise Lost(connection.why)
                await connection.ping()
                self._since = self._agent.loop.now()
                delays.reset()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve_side(self, side: Side, connection: Connection, delays: _Delays) -> None:
        pauses = _Delays()
        while not connection.is_closed():
            begun = self._agent.loop.now()
            try:
                await side.serve(connection)
            except NONSENSE as error:
                raise Lost(
                    f"{connection.url}: its answer makes no sense: {type(error).__name__} {error}"[:300]
                ) from None
            except (Unready, JetStreamError) as reason:
                self._agent.blocked(side.name, str(reason))
                if self._agent.loop.now() - begun > _MAX_DELAY:
                    pauses.reset()
                await asyncio.sleep(pauses.next())
            else:
                delays.reset()
                await asyncio.sleep(_FIRST_DELAY / 10)

    def _show(self, reason: str) -> None:
        for side in self._sides:
            self._agent.blocked(side.name, reason)

    def _check_stale(self, reason: str) -> None:
        """Raise Gone if the agent should enter again: files of the host are read, and names looked up, only there."""
        if any(words in reason.lower() for words in _REFUSED):
            raise Gone(f"{reason}: credentials are read again")
        if self._agent.loop.now() - self._since > _STALE:
            raise Gone(f"{reason}: no server since {_STALE:.0f} s; their names are looked up again")


class _Delays:
    """Seconds of each wait in turn, exponential."""

    def __init__(self) -> None:
        self._next = _FIRST_DELAY

    @property
    def is_first(self) -> bool:
        """True if nothing has been waited for since `reset`."""
        return self._next == _FIRST_DELAY

    def next(self) -> float:
        """Return the next one."""
        delay = self._next
        self._next = min(2 * delay, _MAX_DELAY)
        return delay

    def reset(self) -> None:
        """Begin again."""
        self._next = _FIRST_DELAY
