"""The messages between an agent and its supervisor on the control channel: JSON objects, one a datagram.

Orders of the supervisor: `{"order": "drain"}`, `{"order": "exit"}`,
`{"order": "retry_dead"}` (there are dead letters to be taken again),
`{"order": "letters"}` (dead letters were taken out of its directory),
`{"order": "dead", "max_bytes": N, …}` (other limits).

Reports of the agent:
`{"report": "ready", "ns_inode": N, "uid": N, "gid": N, "landlock": ABI, "places": {…}}` (places.py),
`{"report": "drained"}`, `{"report": "log", "level": "warning", "text": "…"}`,
`{"report": "blocked"}` (the scoreboard has a reason to wait), `{"report": "dead", "text": "…"}` (put aside: which,
why), `{"report": "refused", "text": "…", "moved": true}` (a file: which, why, and whether it was moved to `error`),
`{"report": "renew"}` (its held socket is of no more use), `{"report": "error", "text": "…"}` (its last words).

The agent may be compromised, so the supervisor takes only what fits `parse` and treats every text as hostile.
"""

from __future__ import annotations

import dataclasses
import json
import socket
from typing import Any

from nsbridge.config.schema import DeadConfig, WhenFull

MAX_SIZE = 8 << 10  # bytes of one datagram
_LEVELS = ("debug", "info", "warning", "error")  # compared, not hashed: a level may be any JSON value
_HELD: list[socket.socket] = []
_TYPES = {"text": str, "ns_inode": int, "uid": int, "gid": int}  # of the fields that people are shown


def send(channel: socket.socket, **fields: object) -> bool:
    """Send without blocking; return True if it was sent. The caller shortens a text that is too long."""
    try:
        channel.send(json.dumps(fields).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True


def held(channel: socket.socket) -> socket.socket:
    """Keep the socket open to the very end of the process: the supervisor takes its close for the agent's death."""
    _HELD.append(channel)
    return channel


def dead_limits(fields: dict[str, object]) -> DeadConfig:
    """Return the limits of a `dead` order: the fields of DeadConfig. Only the supervisor sends it."""
    limits: dict[str, Any] = {field.name: fields[field.name] for field in dataclasses.fields(DeadConfig)}
    limits["when_full"] = WhenFull(limits["when_full"])
    return DeadConfig(**limits)


def parse(datagram: bytes) -> dict[str, object]:
    """Return the object; empty if it is none, or not one of this protocol."""
    try:
        fields = json.loads(datagram)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict):
        return {}
    if fields.get("report") in ("log", "error", "dead", "refused") and "text" not in fields:
        return {}
    if fields.get("report") == "log" and fields.get("level") not in _LEVELS:
        return {}
    if any(type(fields[key]) is not kind for key, kind in _TYPES.items() if key in fields):
        return {}
    return fields
