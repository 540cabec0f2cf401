"""The system call rules of every possible agent, by its task."""

from __future__ import annotations

from nsbridge.agents.confinement import callrules
from nsbridge.agents.endpoints.file import FileEndpoint
from nsbridge.agents.endpoints.log.config import LogEndpoint
from nsbridge.agents.endpoints.mqueue.config import MqueueEndpoint, MqueueIn, MqueueOut
from nsbridge.agents.endpoints.nats.config import NatsEndpoint, NatsIn, NatsOut
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueIn, QueueOut
from nsbridge.agents.endpoints.socket.config import SocketEndpoint
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.config.schema import Delivery, Endpoint

_EXACTLY, _AT_LEAST = Delivery.EXACTLY_ONCE, Delivery.AT_LEAST_ONCE
_BOTH = QueueEndpoint(out=QueueOut(1), in_=QueueIn(2))


def _rules(endpoint: Endpoint, delivery: Delivery = _EXACTLY, *, fsync: bool = False) -> tuple[str, ...]:
    return callrules.rules(endpoint, delivery, fsync=fsync)


_EXACT_QUEUE = _rules(_BOTH)
AGENTS: dict[str, tuple[str, ...]] = {
    "spool": _rules(SpoolEndpoint(out="/a/out", in_="/a/in", done="/a/done")),
    "spool, source": _rules(SpoolEndpoint(out="/a/out")),
    "spool, sink": _rules(SpoolEndpoint(in_="/a/in")),
    "log": _rules(LogEndpoint(out="/a/out", in_="/a/in")),
    "file": _rules(FileEndpoint(out="/a/out", in_="/a/in")),
    "file, fsync": _rules(FileEndpoint(out="/a/out", in_="/a/in"), fsync=True),
    "queue, at-least-once": _rules(_BOTH, _AT_LEAST),
    "queue, exactly-once": _EXACT_QUEUE,
    "queue, source": _rules(QueueEndpoint(out=QueueOut(1))),
    "queue, sink": _rules(QueueEndpoint(in_=QueueIn(2)), _AT_LEAST),
    "queue, exactly-once sink": _rules(QueueEndpoint(in_=QueueIn(2))),
    "queue, exactly-once, at its start": tuple(dict.fromkeys((*_EXACT_QUEUE, *callrules.FORKING, *callrules.SENDER))),
    "queue, limited": _rules(QueueEndpoint(out=QueueOut(1), in_=QueueIn(2), create=True, max_bytes=1000)),
    "mqueue": _rules(MqueueEndpoint(out=MqueueOut("/a"), in_=MqueueIn("/b"), create=True)),
    "mqueue, source": _rules(MqueueEndpoint(out=MqueueOut("/a"))),
    "mqueue, sink": _rules(MqueueEndpoint(in_=MqueueIn("/a"))),
    "nats": _rules(NatsEndpoint(out=NatsOut("S", "s", "d"), in_=NatsIn("t"))),
    "socket": _rules(SocketEndpoint(out="/a/out", in_="/a/in")),
    "socket, source": _rules(SocketEndpoint(out="/a/out")),
    "socket, sink": _rules(SocketEndpoint(in_="/a/in")),
    "sender": callrules.SENDER,
}
