"""Defines the table of the `mqueue` endpoint, and what follows from the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from nsbridge.config import values
from nsbridge.config.kind import reads
from nsbridge.config.problems import quoted
from nsbridge.config.schema import Delivery, Endpoint, Namespace, Needs, Place

HIGHEST_PRIORITY = 32767  # MQ_PRIO_MAX - 1
_MOST_MESSAGES = 65536  # HARD_MSGMAX of the kernel
_LONGEST = 1 << 20  # bytes of a message, unless max_message says otherwise

_NAME = reads(values.posix_queue_name, missing='the queue\'s name, like name = "/orders"')


@dataclass(frozen=True, slots=True)
class MqueueOut:
    """The queue to take messages from: those of the highest priority first, as the kernel hands them out."""

    name: str = field(metadata=_NAME)


@dataclass(frozen=True, slots=True)
class MqueueIn:
    """The queue to put messages into, each with `priority`. None keeps the one it came with, or 0 if it has none."""

    name: str = field(metadata=_NAME)
    priority: int | None = field(default=None, metadata=reads(values.integer(0, HIGHEST_PRIORITY)))


@dataclass(frozen=True, slots=True)
class MqueueEndpoint(Endpoint):
    """POSIX message queues in the container's ipc namespace. A message's priority is carried as its type."""

    out: MqueueOut | None = None
    in_: MqueueIn | None = None
    create: bool = field(default=False, metadata=reads(values.boolean))
    mode: int = field(default=0o660, metadata=reads(values.mode))
    # mq_maxmsg of a queue that is made; None leaves the kernel's default
    max_messages: int | None = field(default=None, metadata=reads(values.integer(1, _MOST_MESSAGES)))
    # bytes of the longest message, in both directions; also mq_msgsize of a queue that is made
    max_message: int | None = field(default=None, metadata=reads(values.posix_message_size))

    name: ClassVar[str] = "mqueue"
    namespace: ClassVar[Namespace] = Namespace.IPC
    has_types: ClassVar[bool] = True
    is_counted: ClassVar[bool] = True

    @property
    def longest(self) -> int:
        """See Endpoint."""
        return _LONGEST if self.max_message is None else self.max_message

    def places(self) -> Mapping[str, Place]:
        """See Endpoint."""
        ends = {"out": self.out.name if self.out else None, "in": self.in_.name if self.in_ else None}
        return {end: _place(name) for end, name in ends.items() if name is not None}

    def needs(self, delivery: Delivery) -> Needs:  # noqa: ARG002  (the same for any)
        """See Endpoint."""
        return Needs(watches=(self.out is not None) + (self.in_ is not None))


def shown(name: str) -> str:
    """Return a queue for people."""
    return f"POSIX queue {name}"


def _place(name: str) -> Place:
    return Place(where=name, shown=shown(name), written=quoted(name), number=f"mqueue {name}", is_local=True)
