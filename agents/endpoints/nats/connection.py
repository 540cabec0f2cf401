"""One connection to one NATS server. The only module that uses nats-py, and only an agent of this kind loads it.

A lost connection is thrown away, and a new one begins with nothing (link.py). So the new one sends nothing that nats-py
had buffered for the old one.

nats-py's JetStream calls are not used. They wait for each answer with a task and a timer of its own, which costs more
than all the rest. Requests and answers of JetStream are messages like any other, and their JSON is documented.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import nats.aio.client
import nats.errors
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg

from nsbridge.agents.endpoints.nats.errors import NONSENSE, JetStreamError, Lost
from nsbridge.agents.endpoints.nats.guest import GuestLoop

PATIENCE = 5.0  # seconds for a connection, and for an answer
_API = "$JS.API."
_NO_RESPONDERS = "503"
_LONGEST_WORDS = 200  # of a server, that people are shown
_BUFFER = 8 << 20  # bytes that are written before nats-py waits for the socket
_MOST_OTHERS = 32  # servers that one may name
_MOST_PAYLOAD = 1 << 40
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){1,3}")
Callback = Callable[[Msg], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Login:
    """The answer to what a server asks for, read before the agent is confined."""

    name: str  # of the connection, as `nats server report connections` shows it
    tls: ssl.SSLContext | None = None
    credentials: str = ""  # a .creds file's text
    nkey: str = ""  # a seed

    def options(self) -> dict[str, Any]:
        """Return the arguments of nats-py's connect."""
        found: dict[str, Any] = {"name": self.name}
        if self.tls is not None:
            found["tls"] = self.tls
        if self.credentials:
            found["user_credentials"] = RawCredentials(self.credentials)
        if self.nkey:
            found["nkeys_seed_str"] = self.nkey
        return found


class _NotAsAsked(nats.errors.Error):
    """A server is none that may be used."""


class _CautiousClient(Client):
    """nats-py's client, which looks at a server's INFO before it acts on it: before it sends credentials, too."""

    def __init__(self, *, needs_tls: bool) -> None:
        super().__init__()
        self._needs_tls = needs_tls
        self.version: tuple[int, ...] = ()  # of the server; empty if it names none

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if not isinstance(info.get("max_payload", 0), int) or not 0 <= info.get("max_payload", 0) <= _MOST_PAYLOAD:
            raise _NotAsAsked("nats: its INFO has a max_payload that makes no sense")
        if self._needs_tls and initial_connection and not info.get("tls_required"):
            raise _NotAsAsked("nats: the server does not speak TLS, which the configuration asks for")
        others = [url for url in info.get("connect_urls") or () if _is_place(url)]
        room = max(0, _MOST_OTHERS - len(self.discovered_servers))
        self.version = version_of(info.get("version"))
        await super()._process_info({**info, "connect_urls": others[:room]}, initial_connection)


def version_of(text: object) -> tuple[int, ...]:
    """Return a version as numbers, of "2.10.27-beta.1" (2, 10, 27); empty if it is none."""
    found = _VERSION.match(text) if isinstance(text, str) else None
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def _is_place(where: object) -> bool:
    """True if it is a host and a port."""
    try:
        parts = urlsplit(f"nats://{where}")
        return bool(parts.hostname and parts.port and parts.path == "")
    except ValueError:
        return False


class Connection:
    """One connection, until it is lost."""

    def __init__(self, guest: GuestLoop, url: str) -> None:
        self.url = url
        self._guest = guest
        self._client = _CautiousClient(needs_tls=False)  # until `open`
        self._why = ""  # the last error that nats-py has reported

    async def open(self, login: Login) -> None:
        """Connect. Raises Lost."""
        self._client = _CautiousClient(needs_tls=login.tls is not None)
        try:
            await asyncio.wait_for(self._open(login), 2 * PATIENCE)
        except (TimeoutError, nats.errors.Error, OSError, ssl.SSLError) as error:
            raise Lost(f"{self.url}: {self._why or _words(error)}") from None
        except NONSENSE as error:
            raise Lost(f"{self.url}: its INFO makes no sense: {_words(error)}") from None

    async def _open(self, login: Login) -> None:
        await self._client.connect(
            self.url,
            error_cb=self._failed,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=int(PATIENCE),
            ping_interval=3600,  # link.py pings
            pending_size=_BUFFER,
            skip_subject_validation=True,  # config.py has done it
            **login.options(),
        )

    @property
    def version(self) -> tuple[int, ...]:
        """Return the server's version, like (2, 10, 27)."""
        return self._client.version

    @property
    def max_payload(self) -> int:
        """Return the bytes of the longest message, with its headers, that the server takes."""
        return self._client.max_payload

    @property
    def others(self) -> list[str]:
        """Return the URLs of servers that this one has named."""
        return [uri.geturl() for uri in self._client.discovered_servers]

    async def ask(self, what: str, **request: object) -> dict[str, Any]:
        """Return JetStream's answer to a request. Raises JetStreamError, Lost; one of NONSENSE for such an answer."""
        try:
            payload = json.dumps(request).encode() if request else b""
            answer = await self._client.request(_API + what, payload, timeout=PATIENCE)
        except nats.errors.NoRespondersError:
            raise JetStreamError(
                int(_NO_RESPONDERS), "JetStream does not answer; it is off, or has no leader"
            ) from None
        except (TimeoutError, nats.errors.Error, OSError) as error:
            why = "; ".join(filter(None, (_words(error), self._why)))
            raise Lost(f"{self.url}: JetStream did not answer: {why}") from None
        found: dict[str, Any] = json.loads(answer.data)
        if refused := found.get("error"):
            text = str(refused.get("description"))[:_LONGEST_WORDS]
            raise JetStreamError(int(refused.get("err_code", refused.get("code", 0))), text)
        return found

    async def publish(self, subject: str, body: bytes, reply: str, headers: dict[str, str] | None = None) -> None:
        """Publish a message. Raises Lost."""
        try:
            await self._client.publish(subject, body, reply, headers)
        except (nats.errors.Error, OSError) as error:
            raise Lost(f"{self.url}: {_words(error)}") from None

    @asynccontextmanager
    async def listening(self, subject: str, callback: Callback) -> AsyncIterator[None]:
        """Let `callback` have each message for a subject. Raises Lost."""
        try:
            made = await self._client.subscribe(subject, cb=callback, pending_msgs_limit=-1, pending_bytes_limit=-1)
        except (nats.errors.Error, OSError) as error:
            raise Lost(f"{self.url}: {_words(error)}") from None
        try:
            yield
        finally:
            with suppress(nats.errors.Error, OSError):  # it ends with the connection
                await made.unsubscribe()

    def inbox(self) -> str:
        """Return a subject that no one else has."""
        return self._client.new_inbox()

    async def ping(self) -> None:
        """Wait for the server's answer. Raises Lost."""
        try:
            await self._client.flush(timeout=int(PATIENCE))
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise Lost(f"{self.url}: {self._why or _words(error)}") from None

    def is_closed(self) -> bool:
        """True if it is lost."""
        return not self._client.is_connected

    @property
    def why(self) -> str:
        """Return why it is lost."""
        return f"{self.url}: {self._why or self._client.last_error or 'the connection is closed'}"

    async def close(self) -> None:
        """Throw it away; a server that does not read makes no difference."""
        self._guest.drop_transports()
        with suppress(Exception):
            await asyncio.wait_for(self._client.close(), 1)

    async def _failed(self, error: Exception) -> None:
        self._why = _words(error)


def _words(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    words = str(error).removeprefix("nats: ")[:_LONGEST_WORDS]
    return " ".join(words.split()) or type(error).__name__


def status_of(message: Msg) -> tuple[str, Mapping[str, str]]:
    """Return the status that a message is, in place of a message of a stream; empty if it is none."""
    headers = message.headers or {}
    return ("", headers) if message.data else (headers.get("Status", ""), headers)
