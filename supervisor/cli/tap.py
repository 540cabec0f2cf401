"""`nsbridgectl tap`: messages as they are handed over, for a person, as JSON lines, or as they are."""

from __future__ import annotations

import base64
import json
import sys

from nsbridge.config.errors import EXIT_OK, NsbridgeError, UsageError
from nsbridge.config.text import escape
from nsbridge.supervisor.cli.client import ControlClient

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from typing import Any

    from nsbridge.supervisor.cli.commands.parse import Parsed

_SHOWN = 200  # bytes of a message that a person is shown


def run(client: ControlClient, options: Parsed) -> int:
    """Print until the tap ends or Ctrl-C; return the exit code. Raise NsbridgeError."""
    if options.json and options.raw:
        raise UsageError("--json and --raw exclude each other")
    params: dict[str, object] = {"name": options.name} | ({} if options.count is None else {"count": options.count})
    show = _json if options.json else _raw if options.raw else _text
    left = options.count
    try:
        for item in client.stream("tap", params, follow=True):
            if "tapped" in item:
                if sys.stderr.isatty():
                    _note(f"what {', '.join(map(str, item['tapped']))} hands over from now on; Ctrl-C ends")
                continue
            show(item)
            sys.stdout.flush()
            left = None if left is None else left - ("body" in item)
    except KeyboardInterrupt:  # the way to end it
        return EXIT_OK
    if left or options.count is None:
        raise NsbridgeError(f"tap: {options.name} is not in the configuration any more, or was changed in it")
    return EXIT_OK


def _json(item: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(item) + "\n")


def _raw(item: dict[str, Any]) -> None:
    if "missed" in item:
        _note(_missed(item))
        return
    sys.stdout.buffer.write(base64.b64decode(item["body"]))
    sys.stdout.buffer.flush()
    if item["cut"]:
        _note(f"message {item['seq']} to {item['to']} has {item['bytes']:,} bytes: only the beginning was copied")


def _text(item: dict[str, Any]) -> None:
    sys.stdout.write((_missed(item) if "missed" in item else _line(item)) + "\n")


def _missed(item: dict[str, Any]) -> str:
    count = item["missed"]
    return escape(
        f"… {count:,} more message{'' if count == 1 else 's'} from {item['from']} to {item['to']}, not copied"
    )


def _line(item: dict[str, Any]) -> str:
    body = base64.b64decode(item["body"])
    left = item["bytes"] - min(len(body), _SHOWN)
    text = body[:_SHOWN].decode("utf-8", "backslashreplace") + (f" … {left:,} more" if left else "")
    about = f"{item['time']} {item['from']} → {item['to']} {item['seq']}"
    kind = f" type {item['type']}" if item["type"] else ""
    return escape(f"{about}{kind} {item['bytes']:,} B: {text}")


def _note(text: str) -> None:
    sys.stderr.write(escape(f"nsbridgectl: {text}") + "\n")
