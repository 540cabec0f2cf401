"""`nsbridgectl dead …`: what the control socket says about dead letters, for a person or as JSON."""

from __future__ import annotations

import base64
import json
import re
import sys
import time

from nsbridge.agents.dead.ids import in_short
from nsbridge.config.errors import EXIT_OK, NsbridgeError
from nsbridge.config.text import escape
from nsbridge.supervisor.cli import render
from nsbridge.supervisor.cli.client import ControlClient

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from typing import Any

_MOST_CALLS = 1000  # of one command; the daemon handles 1,000 letters in each
_SHOWN = 1024  # bytes of a message that a person is shown
_WHAT_TO_DO = "when the cause under WHY is fixed: nsbridgectl dead retry ID…, or all; dead drop removes them"
_PAST = {"retry": "given back to be delivered", "drop": "dropped"}


def run(client: ControlClient, what: str, names: list[str], *, as_json: bool) -> tuple[list[str], int]:
    """Run the command; return the lines to print and the exit code. Raise NsbridgeError."""
    if what == "list":
        result = client.call("dead_list", {"names": names})
        lines = _list(result)
    elif what == "show":
        result = client.call("dead_show", {"id": names[0]})
        lines = _show(result)
    else:
        result = _each(client, what, names)
        lines = _changed(what, result)
    if as_json:
        lines = [json.dumps(result, indent=2)]
    failed = what in _PAST and bool(result["failed"])
    return lines, NsbridgeError.exit_code if failed else EXIT_OK


def _each(client: ControlClient, what: str, names: list[str]) -> dict[str, Any]:
    """Retry or drop the letters; of names, as often as the daemon has more of them, which takes some at a time.

    A letter that cannot be delivered again is put aside again at once: so only letters from before now count.
    """
    params: dict[str, object] = {"ids": names, "before": time.time()}
    result: dict[str, Any] = client.call(f"dead_{what}", params)
    if any("/" in name for name in names):
        return result
    latest = result
    for _ in range(_MOST_CALLS):
        if not latest["more"] or not latest["done"]:
            break
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[Kdead {what}: {len(result['done']):,} {_PAST[what]}")
        latest = client.call(f"dead_{what}", params)
        failed = {failure["id"]: failure for failure in (*result["failed"], *latest["failed"])}
        result = {
            "done": [*result["done"], *latest["done"]],
            "failed": list(failed.values()),
            "more": latest["more"],
            "waiting": result["waiting"] | latest["waiting"],
        }
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    return result


def _list(result: dict[str, Any]) -> list[str]:
    letters = result["letters"]
    lines = []
    if letters:
        rows = [["ID", "WHEN", "BYTES", "TYPE", "WHERE", "WHY"]]
        rows += [_row(letter, letters) for letter in letters]
        lines = [*render.table(rows), _WHAT_TO_DO]
    for name, count in result["to_be_retried"].items():
        lines.append(f"{count} given back, to be delivered by {escape(name)} when it can")
    if result["more"]:
        lines.append("and more: name an agent, or retry or drop some first")
    return lines or ["no dead letters"]


def _row(letter: dict[str, Any], letters: list[dict[str, Any]]) -> list[str]:
    cells = (letter["time"], letter["bytes"], letter["type"] or None, letter["where"], letter["why"])
    return [_id(letter, letters), *map(_cell, cells)]


def _id(letter: dict[str, Any], letters: list[dict[str, Any]]) -> str:
    """Return the ID, without the epoch if it is unique so."""
    same = [x for x in letters if (x["agent"], x["seq"]) == (letter["agent"], letter["seq"])]
    return escape(str(letter["id"] if len(same) > 1 else f"{letter['agent']}/{letter['seq']}"))


def _cell(value: object) -> str:
    return "-" if value is None else escape(str(value))


def _show(result: dict[str, Any]) -> list[str]:
    body = base64.b64decode(result["body"])
    facts = {key: value for key, value in result.items() if key not in ("body", "cut")}
    left = result["bytes"] - min(len(body), _SHOWN)
    text = escape(body[:_SHOWN].decode("utf-8", "backslashreplace"))
    more = f" … and {left:,} more bytes, in the file" if left > 0 else ""
    return [*render.tree(facts), "", text + more]


def _changed(what: str, result: dict[str, Any]) -> list[str]:
    lines = [escape(failure["error"]) for failure in result["failed"]]
    count = len(result["done"])
    which = f": {escape(in_short(_shortened(result['done'])))}" if count else ""
    lines.append(f"{count:,} dead letter{'' if count == 1 else 's'} {_PAST[what]}{which}")
    for name, state in result["waiting"].items():
        lines.append(f"{escape(name)} is {escape(state)}: it delivers them when it runs")
    if result["more"]:
        lines.append("there are more: do it again")
    return lines


def _shortened(ids: list[str]) -> list[str]:
    """Return the IDs without their epoch, if all numbers of an agent have the same one: both forms mean the letter."""
    parts = [re.fullmatch(r"(.*/)([0-9a-f]+-)([0-9]+)", one) for one in ids]
    epochs: dict[str, set[str]] = {}
    for part in filter(None, parts):
        epochs.setdefault(part[1], set()).add(part[2])
    unique = [part is not None and len(epochs[part[1]]) == 1 for part in parts]
    return [
        f"{part[1]}{part[3]}" if part and is_unique else one
        for one, part, is_unique in zip(ids, parts, unique, strict=True)
    ]
