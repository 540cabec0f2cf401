"""Defines the table of the `nats` endpoint, and what follows from the configuration alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from nsbridge.agents.endpoints.nats.subjects import is_filter, is_literal, matches
from nsbridge.config import values
from nsbridge.config.hostfiles import HostFile
from nsbridge.config.kind import reads
from nsbridge.config.problems import InvalidValue, quoted, shown
from nsbridge.config.schema import Delivery, Endpoint, Namespace, Needs, Place

PORT = 4222  # of a server whose URL has none
STOP, SKIP = "stop", "skip"
_SERVER = re.compile(r"(nats|tls)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:([0-9]{1,5}))?")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PORT_MAX = 65535
_OWN = "$"  # begins the subjects of the server itself


def server(value: object) -> str:
    """Read the URL of a server."""
    url = values.text(value)
    parts = _SERVER.fullmatch(url)
    if parts is None or not 0 < int(parts[4] or PORT) <= _PORT_MAX:
        what = f"is not the URL of a NATS server, got {shown(value)}"
        raise InvalidValue(
            what, 'write it like "nats://10.0.0.1:4222" or "tls://nats.example.com"; no user or password'
        )
    return url


def host_and_port(url: str) -> tuple[str, int]:
    """Return where a server is, by its URL."""
    where = url.partition("://")[2]
    host, colon, port = where.rpartition(":")
    if not colon or where.endswith("]"):
        host, port = where, str(PORT)
    return host.strip("[]"), int(port)


def servers(value: object) -> tuple[str, ...]:
    """Read an array of URLs, at least one."""
    found = values.listed(server)(value)
    if not found:
        raise InvalidValue("is empty", 'name a server, like "nats://10.0.0.1:4222"')
    return found


def name(value: object) -> str:
    """Read the name of a stream or of a durable consumer."""
    text = values.text(value)
    if not _NAME.fullmatch(text):
        raise InvalidValue(f"is not a name, got {shown(value)}", "use letters, digits, - and _, at most 128")
    return text


def subject(value: object) -> str:
    """Read a subject to publish to."""
    text = values.text(value)
    if not is_literal(text) or text.startswith(_OWN):
        what = f"is not a subject to publish to, got {shown(value)}"
        raise InvalidValue(what, 'write words with dots between them, like "orders.new"; no *, > or blank')
    return text


def subjects(value: object) -> str:
    """Read a subject or a pattern of subjects."""
    text = values.text(value)
    if not is_filter(text) or text.startswith(_OWN):
        what = f"is not a subject, got {shown(value)}"
        raise InvalidValue(what, 'write words with dots between them, like "orders.new", "orders.*" or "orders.>"')
    return text


@dataclass(frozen=True, slots=True)
class NatsOut:
    """The durable pull consumer to take messages from."""

    stream: str = field(metadata=reads(name, missing='the stream, like stream = "ORDERS"'))
    subject: str = field(metadata=reads(subjects, missing='the subject, like subject = "orders.new"'))
    durable: str = field(metadata=reads(name, missing='the consumer\'s name, like durable = "nsbridge"'))


@dataclass(frozen=True, slots=True)
class NatsIn:
    """The subject to publish messages to."""

    subject: str = field(metadata=reads(subject, missing='the subject, like subject = "orders.new"'))


@dataclass(frozen=True, slots=True)
class NatsTls:
    """Certificates: `ca` signs the servers', by default the host's authorities do; `cert` and `key` are the agent's."""

    ca: str | None = field(default=None, metadata=reads(values.path))
    cert: str | None = field(default=None, metadata=reads(values.path))
    key: str | None = field(default=None, metadata=reads(values.path))

    def __post_init__(self) -> None:
        """Raise InvalidValue for half of a certificate."""
        if (self.cert is None) != (self.key is None):
            raise InvalidValue('has only one of "cert" and "key"', "set both, or neither")


@dataclass(frozen=True, slots=True)
class NatsEndpoint(Endpoint):
    """Subjects of NATS JetStream."""

    out: NatsOut | None = None
    in_: NatsIn | None = None
    servers: tuple[str, ...] = field(default=("nats://127.0.0.1:4222",), metadata=reads(servers))
    credentials: str | None = field(default=None, metadata=reads(values.path))
    tls: NatsTls | None = None
    lost: str = field(default=STOP, metadata=reads(values.choice(STOP, SKIP)))  # if a cluster loses messages
    # bytes of the longest message, in both directions
    max_message: int = field(default=8 << 20, metadata=reads(values.message_size))

    name: ClassVar[str] = "nats"
    namespace: ClassVar[Namespace] = Namespace.NET
    has_types: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise InvalidValue if it would take what it publishes."""
        if self.out is not None and self.in_ is not None and matches(self.out.subject, self.in_.subject):
            what = f"takes {quoted(self.out.subject)}, and publishes to {quoted(self.in_.subject)}"
            raise InvalidValue(
                what, "its own messages would circulate endlessly: use another subject for one of the two"
            )

    @property
    def uses_tls(self) -> bool:
        """True if no message may travel without TLS."""
        return self.tls is not None or any(url.startswith("tls:") for url in self.servers)

    @property
    def ports(self) -> Collection[int]:
        """See Endpoint."""
        return [host_and_port(url)[1] for url in self.servers]

    @property
    def host_files(self) -> Collection[HostFile]:
        """See Endpoint."""
        tls = self.tls or NatsTls()
        found = (
            ("credentials", self.credentials, True),
            ("tls.ca", tls.ca, False),
            ("tls.cert", tls.cert, False),
            ("tls.key", tls.key, True),
        )
        return [HostFile(key, path, is_secret) for key, path, is_secret in found if path is not None]

    @property
    def longest(self) -> int:
        """See Endpoint."""
        return self.max_message

    def places(self) -> Mapping[str, Place]:
        """See Endpoint."""
        places = {}
        at = tuple(sorted(self.servers))
        if self.out is not None:
            text = f"consumer {self.out.durable} of stream {self.out.stream}"
            places["out"] = Place(where=(at, self.out.stream, self.out.durable), shown=text, written=text)
        if self.in_ is not None:
            text = f"subject {self.in_.subject}"
            places["in"] = Place(where=(at, self.in_.subject), shown=text, written=text)
        return places

    def needs(self, delivery: Delivery) -> Needs:  # noqa: ARG002  (the same for any)
        """See Endpoint."""
        return Needs()
