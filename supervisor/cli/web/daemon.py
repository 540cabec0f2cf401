"""The web process's side of the control socket: asynchronous, so that a daemon that hangs delays no other request.

Each call has a connection of its own and a limit. It costs the daemon 0.2 ms more than a kept one, and a connection
that broke or hangs has no successor to disturb.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from nsbridge.config.errors import NsbridgeError, UnreachableError
from nsbridge.supervisor.cli import client

LIMIT = 3.0  # seconds for one call; a scrape has 10 by default
_LONGEST = 64 << 20  # bytes of an answer; `status` of 200 routes has 0.3 MB


class Daemon:
    """The daemon that listens at `path`. All methods raise NsbridgeError, in the words that nsbridgectl has."""

    def __init__(self, path: str, limit: float = LIMIT) -> None:
        self.path = path
        self.pid: int | None = None  # of the process that listens, as the kernel shows it to this process
        self._limit = limit

    async def call(self, method: str, params: dict[str, object] | None = None) -> Any:
        """Return the result of `method`."""
        try:
            async with asyncio.timeout(self._limit), self._connection() as (reader, writer):
                await _request(writer, method, params or {})
                return _field(await reader.readline(), "result", self.path)
        except TimeoutError:
            raise client.LateError(f"{self.path}: nsbridged did not answer {method} within {self._limit:g} s") from None

    async def follow(self, method: str, params: dict[str, object]) -> AsyncIterator[Any]:
        """Yield the items of `method` as they come, until the daemon ends or the caller stops."""
        async with self._connection() as (reader, writer):
            await _request(writer, method, {**params, "follow": True})
            while line := await reader.readline():
                yield _field(line, "item", self.path)
        raise client.EndedError(f"{self.path}: nsbridged has ended")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        try:
            reader, writer = await asyncio.open_unix_connection(self.path, limit=_LONGEST)
        except OSError as failure:
            raise client.cannot_connect(self.path, self._limit, failure) from None
        self.pid = client.peer_pid(writer.get_extra_info("socket"))
        try:
            yield reader, writer
        except OSError as broken:
            if isinstance(broken, TimeoutError):
                raise
            raise UnreachableError(f"{self.path}: the connection broke: {broken.strerror}") from None
        finally:
            writer.close()


async def _request(writer: asyncio.StreamWriter, method: str, params: dict[str, object]) -> None:
    writer.write(json.dumps({"id": 1, "method": method, "params": params}).encode() + b"\n")
    await writer.drain()


def _field(line: bytes, key: str, path: str) -> Any:
    """Return what an answer has under `key`. Raises NsbridgeError if it is an error, or no answer at all."""
    if not line:
        raise client.EndedError(f"{path}: nsbridged closed the connection before it had answered in full")
    try:
        answer = json.loads(line)
        if (error := answer.get("error")) is not None:
            raise client.error_of(int(error["code"]), str(error["message"]))
        return answer[key]
    except NsbridgeError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError):
        raise UnreachableError(f"{path}: the listener there does not speak nsbridge's protocol") from None
