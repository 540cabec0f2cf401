"""Defines the table of the `queue` endpoint, and what follows from the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from nsbridge.config import values
from nsbridge.config.kind import reads, same_path
from nsbridge.config.problems import quoted
from nsbridge.config.schema import Delivery, Endpoint, Namespace, Needs, Place

_SENDERS = 2  # processes of an exactly-once sink; any other has a thread that waits for room


@dataclass(frozen=True, slots=True)
class FtokKey:
    """A queue key made as ftok(3) makes it, from a path inside the container and a project number (1 to 255)."""

    path: str = field(
        metadata=reads(values.path_like("/etc/orders"), missing='the path for ftok, like path = "/etc/orders"')
    )
    proj: int = field(metadata=reads(values.integer(1, 255), missing="the project number for ftok, like proj = 1"))


_KEY = reads(values.queue_key, table=FtokKey, missing="the queue's key, like key = 0x4d2")


@dataclass(frozen=True, slots=True)
class QueueOut:
    """The queue to take messages from. `type` selects as in msgrcv(2): 0 any, n that type, -n the lowest up to n."""

    key: int | FtokKey = field(metadata=_KEY)
    type: int = field(default=0, metadata=reads(values.integer(-values.I64_MAX - 1, values.I64_MAX)))


@dataclass(frozen=True, slots=True)
class QueueIn:
    """The queue to put messages into, each with `type`. None keeps the type it came with, or 1 if it came with none."""

    key: int | FtokKey = field(metadata=_KEY)
    type: int | None = field(default=None, metadata=reads(values.integer(1, values.I64_MAX)))


@dataclass(frozen=True, slots=True)
class QueueEndpoint(Endpoint):
    """SysV message queues in the container's ipc namespace."""

    out: QueueOut | None = None
    in_: QueueIn | None = None
    create: bool = field(default=False, metadata=reads(values.boolean))
    mode: int = field(default=0o660, metadata=reads(values.mode))
    # msg_qbytes of a queue that is made; None leaves the kernel's msgmnb
    max_bytes: int | None = field(default=None, metadata=reads(values.queue_size))
    # bytes of the longest message, in both directions
    max_message: int = field(default=1 << 20, metadata=reads(values.message_size))

    name: ClassVar[str] = "queue"
    namespace: ClassVar[Namespace] = Namespace.IPC
    has_types: ClassVar[bool] = True
    is_counted: ClassVar[bool] = True

    @property
    def longest(self) -> int:
        """See Endpoint."""
        return self.max_message

    def places(self) -> Mapping[str, Place]:
        """See Endpoint."""
        places = {}
        if self.out is not None:
            places["out"] = _place(self.out.key, selector=self.out.type)
        if self.in_ is not None:
            places["in"] = _place(self.in_.key, given=self.in_.type)
        return places

    def needs(self, delivery: Delivery) -> Needs:
        """See Endpoint."""
        putting = _SENDERS if delivery is Delivery.EXACTLY_ONCE else 1
        return Needs(tasks=(self.out is not None) + (putting if self.in_ is not None else 0))


def _place(key: int | FtokKey, selector: int | None = None, given: int | None = None) -> Place:
    """Return the queue's place. The number of a key that is made of a path is known only inside the container."""
    where: int | FtokKey
    if isinstance(key, FtokKey):
        where, path, number = FtokKey(same_path(key.path), key.proj), key.path, ""
        shown = f"{{ path = {quoted(where.path)}, proj = {key.proj} }}"
    else:
        where, path, number, shown = key, "", str(key), f"{key:#x}"
    return Place(
        where=where,
        shown=f"queue {shown}",
        written=f"key {shown}",
        made_of=path,
        number=number,
        is_local=True,
        selector=selector,
        type=given,
        has_last_sender=True,
    )
