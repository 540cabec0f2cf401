"""A request of the control socket: what it is read from, and what the log has of it."""

from __future__ import annotations

import json

from nsbridge.config.errors import UsageError
from nsbridge.config.schema import ControlConfig
from nsbridge.supervisor.control.access import Caller

MAX_REQUEST = 64 << 10  # bytes of a request's line
TOO_LONG = UsageError(f"a request is one line of at most {MAX_REQUEST} bytes")
MAX_LOGGED = 200  # characters of a request in the log


def parse(line: bytes) -> tuple[object, str, dict[str, object]]:
    """Return the id, method and parameters of a request. Raises UsageError if it is malformed."""
    if len(line) > MAX_REQUEST:
        raise TOO_LONG
    try:
        request = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise UsageError("a request is one line of JSON in UTF-8") from None
    if not isinstance(request, dict):
        raise UsageError("a request is a JSON object with id, method and params")
    request_id, method, params = request.get("id"), request.get("method"), request.get("params", {})
    if not isinstance(request_id, int | str) or not isinstance(method, str) or not isinstance(params, dict):
        raise UsageError("a request has an id (number or string), a method (string) and params (object)")
    return request_id, method, params


def refusal(config: ControlConfig, caller: Caller, what: str) -> str:
    """Return the line that refuses it."""
    return (
        f"uid {caller.uid} is not permitted to {what}: only root and members of group {config.group} may control, "
        f"members of group {config.read_group} may look"
    )


def summary(method: str, params: dict[str, object]) -> str:
    """Describe a request for the log, shortened."""
    words = [str(value) for key in ("names", "name", "ids", "id") if (value := params.get(key))]
    return " ".join([method.replace("_", " "), *words, *(["(dry run)"] if params.get("dry_run") else [])])[:MAX_LOGGED]


def place(bug: Exception) -> str:
    """Return the exception and where it was raised, in one line."""
    trace = bug.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(bug).__name__}: {bug}{where}"
