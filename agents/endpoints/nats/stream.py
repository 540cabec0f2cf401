"""Answers of JetStream about a stream and a consumer, and why nsbridge cannot use one. No I/O."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple
from zlib import crc32

from nsbridge.agents.endpoints.nats.errors import Unready
from nsbridge.agents.endpoints.nats.subjects import matches

NO_MESSAGE = 10037
NO_STREAM = 10059
NO_CONSUMER = 10014
# The message before it is not the expected one (10070, 10071), or may still become another one (10158, 10164).
WRONG_LAST = frozenset((10070, 10071, 10158, 10164))
TYPE_HEADER = "Nsbridge-Type"  # of a SysV message: a sink across may give it to the message again
ID_HEADER = "Nats-Msg-Id"
BEHIND_HEADER = "Nsbridge-Behind"  # the id of the publisher's message before, if that is not the seq before; order.py
STREAM_HEADER = "Nats-Expected-Stream"
LAST_HEADER = "Nats-Expected-Last-Sequence"  # of the stream's last message
LAST_ID_HEADER = "Nats-Expected-Last-Msg-Id"  # of the same message
LAST_OF_SUBJECT_HEADER = "Nats-Expected-Last-Subject-Sequence"
_I64_MAX = (1 << 63) - 1


class Stored(NamedTuple):
    """A message of a stream."""

    sequence: int
    headers: Mapping[str, str]
    body: bytes
    time: int  # when it was stored, in ns; 0 if that is not known


def stored(answer: Mapping[str, Any]) -> Stored:
    """Return the message of an answer to STREAM.MSG.GET."""
    message = answer["message"]
    text = base64.b64decode(message.get("hdrs", "")).decode("utf-8", "replace")
    lines = (line.partition(":") for line in text.split("\r\n")[1:])
    headers = {name.strip(): value.strip() for name, _, value in lines if name}
    body = base64.b64decode(message.get("data", ""))
    return Stored(sequence(message["seq"]), headers, body, _nanoseconds(message.get("time", "")))


def _nanoseconds(text: str) -> int:
    """Return a time like 2026-11-29T14:00:00.123456789Z in ns; 0 if there is none. Raises ValueError."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    if not whole:
        return 0
    return moment(int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0")[:9]))


def moment(number: int) -> int:
    """Return a time in ns that a journal can keep. Raises ValueError."""
    if not 0 <= number <= _I64_MAX:
        raise ValueError(f"{number} is no time of a message")
    return number


def sequence(value: str | int) -> int:
    """Return the number of a message in a stream. Raises ValueError."""
    number = int(value)
    if not 0 < number <= _I64_MAX:
        raise ValueError(f"{number} is no sequence of a message")
    return number


def type_of(headers: Mapping[str, str]) -> int:
    """Return the type that a message had; 0 if it had none."""
    text = headers.get(TYPE_HEADER, "")
    return int(text) if text.isascii() and text.isdigit() and int(text) <= _I64_MAX else 0


class StreamState(NamedTuple):
    """The state of a stream, as far as a sink needs it."""

    name: str
    identity: int
    first: int  # sequence of its first message
    last: int
    is_whole: bool  # True if no message between these two was deleted
    max_message: int  # bytes of the longest message with its headers; -1 if there is no limit
    is_replicated: bool  # True if several servers keep it
    loses: str  # what it does when it is full, if that may lose messages that no one has taken


def for_sink(info: Mapping[str, Any]) -> StreamState:
    """Return the state of a stream to publish to. Raises Unready if it does not keep the evidence."""
    config, state = info["config"], info["state"]
    name, retention = config["name"], config.get("retention", "limits")
    if retention != "limits":
        raise Unready(
            f"stream {name} has the retention {retention}: it deletes what was taken, and with it the evidence of what "
            "was published; make it with the retention limits"
        )
    if config.get("no_ack"):
        raise Unready(f"stream {name} has no_ack: it never confirms a message; turn that off")
    if config.get("sealed") or config.get("mirror"):
        raise Unready(f"stream {name} is sealed or a mirror, and takes no messages")
    limits = [key for key in ("max_msgs", "max_bytes", "max_msgs_per_subject", "max_age") if config.get(key, -1) > 0]
    drops = limits if config.get("discard", "old") == "old" else [key for key in limits if key == "max_age"]
    loses = f"stream {name} deletes its oldest messages by {', '.join(drops)}, taken or not" if drops else ""
    is_whole = not state.get("num_deleted", 0)
    most = int(config.get("max_msg_size", -1))
    return StreamState(
        name,
        identity(info),
        int(state["first_seq"]),
        int(state["last_seq"]),
        is_whole,
        most,
        int(config.get("num_replicas", 1)) > 1,
        loses,
    )


def identity(info: Mapping[str, Any]) -> int:
    """Return a number for this stream, which another one of the same name does not have; never 0."""
    text = f"{info['config']['name']} {info['created']}"
    return crc32(text.encode()) | 1 << 32


def has_lost(name: str, what: str) -> str:
    """Return why nothing is published to, or taken from, a stream that has lost messages."""
    return (
        f"stream {name} {what}: a server of the cluster has lost messages, or has yet to catch up. If this stays so, "
        f'another server may have them: nats stream cluster step-down {name}. lost = "skip" continues without them'
    )


def start_after(info: Mapping[str, Any], known: int) -> dict[str, Any]:
    """Return where a consumer that is made begins, if the message `known` was taken last; 0: none was.

    A stream whose messages are deleted when they were taken has only consumers that begin at its beginning.
    """
    if not known or info["config"].get("retention", "limits") != "limits":
        return {"deliver_policy": "all"}
    return {"deliver_policy": "by_start_sequence", "opt_start_seq": known + 1}


def check_consumer(info: Mapping[str, Any], subject: str) -> None:
    """Raise Unready if a consumer that is there cannot be used."""
    config, name = info["config"], f"consumer {info['name']} of stream {info['stream_name']}"
    filters = [config["filter_subject"]] if config.get("filter_subject") else config.get("filter_subjects") or [">"]
    if config.get("deliver_subject"):
        raise Unready(f"{name} is a push consumer; nsbridge takes from a pull consumer: use another name")
    if config.get("ack_policy", "none") == "none":
        raise Unready(f"{name} has the ack policy none: a message that is lost on the way would not come again")
    if config.get("headers_only"):
        raise Unready(f"{name} has headers_only: it sends no messages, only their headers")
    if config.get("deliver_policy") == "last_per_subject":
        raise Unready(f"{name} has the deliver policy last_per_subject: it skips messages")
    if filters != [subject] and not (filters == [">"] and matches(subject, ">")):
        raise Unready(f"{name} takes {', '.join(filters)}, and the configuration says {subject}: make them the same")


def too_long(body: bytes, headers: Mapping[str, str], most: int) -> str:
    """Return why the message can never be published; empty if it can."""
    length = len(body) + 14 + sum(len(name) + len(value) + 4 for name, value in headers.items())
    if length <= most:
        return ""
    return f"with its headers it has {length} bytes; NATS takes {most} (max_payload, or the stream's max_msg_size)"
