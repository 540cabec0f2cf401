"""Text for people: tables, durations, lines of the log.

nsbridgectl imports this for every command a person types, so it imports nothing that costs time to load.
"""

from __future__ import annotations

from nsbridge.config.text import duration, escape

WIDTH = 79  # columns, where it can be kept: a terminal's 80, less its last

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_COLOURS = {"RUNNING": "32", "FATAL": "31", "STOPPED": "0"}  # SGR codes; every other state is yellow
_HELD = " (stopped: autostart = false)"
_YELLOW = "33"
_WOULD = {"stop": "would stop", "start": "would start", "restart": "would restart", "unchanged": "would leave alone"}
_DOES = {"stop": "stops", "start": "starts", "restart": "restarts", "unchanged": "leaves alone"}


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return `rows` of equally many cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def status(result: dict[str, Any], *, colour: bool) -> list[str]:
    """Return the lines of `nsbridgectl status`: a line for each agent of the status document (docs/running.md)."""
    agents = [(agent, route["flows"]) for route in result["routes"] for agent in route["agents"]]
    if not agents:
        return ["no routes"]
    lines = []
    for line, (agent, _) in zip(table([_agent_row(*pair) for pair in agents]), agents, strict=True):
        shown = _coloured(line, str(agent["state"])) if colour else line
        lines.append(f"{shown}  {escape(str(agent['detail']))}" if _has_long_detail(agent) else shown)
    return lines


def tree(value: dict[str, Any], indent: str = "") -> list[str]:
    """Return any JSON object as indented `key  value` lines; a list of words continues in its column."""
    width = max(map(len, map(str, value)), default=0)
    lines = []
    for key, entry in value.items():
        if isinstance(entry, dict) and entry:
            lines += [indent + escape(str(key)), *tree(entry, indent + "  ")]
        elif isinstance(entry, list) and any(isinstance(item, dict) for item in entry):
            lines.append(indent + escape(str(key)))
            for item in entry:
                lines += _item(item, indent + "  ")
        else:
            words = [_scalar(item) for item in entry] if isinstance(entry, list) and entry else [_scalar(entry)]
            lines += listed(f"{indent}{escape(str(key)):{width}}  ", words)
    return lines


def listed(start: str, words: Sequence[str]) -> list[str]:
    """Return `start` and then `words` with commas between them, in lines of 80 columns, each word whole."""
    lines = [start]
    for number, word in enumerate(words):
        text = word + ("," if number < len(words) - 1 else "")
        if len(lines[-1]) + len(text) > WIDTH and len(lines[-1]) > len(start):
            lines[-1] = lines[-1].rstrip()
            lines.append(" " * len(start))
        lines[-1] += text + " "
    lines[-1] = lines[-1].rstrip()
    return lines


def log_line(item: dict[str, Any]) -> str:
    """Return a record of `tail` as the daemon's text log has it."""
    return escape(f"{item['time']} {item['level']} {_named(item)} {item['message']}")


def event_line(item: dict[str, Any]) -> str:
    """Return a line of `events`: when, whose, from what to what, and why."""
    steps = " -> ".join(str(item[key]) for key in ("from", "to") if item.get(key))
    what = steps if item["event"] == "state" and steps else f"{item['event']} {steps}".rstrip()
    detail = str(item.get("detail") or "")
    return escape(f"{item['time']} {_named(item)} {what}{f': {detail}' if detail else ''}")


def _named(item: dict[str, Any]) -> str:
    return str(item["name"]) or "nsbridged"


def reload(result: dict[str, Any]) -> list[str]:
    """Return the changes a reload has begun, or would make: after each of its verbs the names of the routes."""
    verbs = _WOULD if result["dry_run"] else _DOES
    width = max(map(len, verbs.values()))
    lines = []
    for key, verb in verbs.items():
        held = result.get("held", ()) if key == "start" else ()
        if names := [escape(str(name)) + (_HELD if name in held else "") for name in result[key]]:
            lines += listed(f"{verb:{width}}  ", names)
    lines += [f"{'daemon':{width}}  {escape(str(text))}" for text in result.get("daemon", [])]
    lines += [f"{'this host':{width}}  {escape(str(text))}" for text in result.get("warnings", [])]
    if not any(result[key] for key in ("stop", "start", "restart")):
        lines.insert(0, "no route has changed")
    return lines


def reason(agent: dict[str, Any]) -> str:
    """Return ` (why)` for an agent in the status document; empty if there is no reason."""
    return f" ({agent['detail']})" if agent.get("detail") else ""


def _item(item: object, indent: str) -> list[str]:
    """Return an element of a list: an object of scalars is one line, a nested one is a tree of its own."""
    if not isinstance(item, dict):
        return [indent + _scalar(item)]
    if any(isinstance(entry, dict | list) for entry in item.values()):
        return tree(item, indent)
    return [indent + "  ".join(_scalar(entry) for entry in item.values())]


def _scalar(value: object) -> str:
    if value is None or value in ([], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(str(value))


_MOST_LETTERS = 1000  # that are counted: control/deadletters.py
_OLD = 5.0  # seconds that a message may be pending without a remark
_MANY = 1000  # files that wait, from which on a backlog is shown
_WIDEST_INFO = 40  # characters of a detail that stands in its column


def _agent_row(agent: dict[str, Any], flows: list[dict[str, Any]]) -> list[str]:
    cells = (agent["name"], agent["state"], _info(agent), agent["container"], agent["endpoint"])
    return [*(escape(str(cell)) for cell in cells), _counts(str(agent["name"]), flows)]


def _has_long_detail(agent: dict[str, Any]) -> bool:
    """True if the detail is at the end of its line: where the agent has a pid, or where it would move the counters."""
    detail = str(agent.get("detail") or "")
    return len(detail) > _WIDEST_INFO or bool(detail and agent["state"] == "RUNNING")


def _info(agent: dict[str, Any]) -> str:
    if agent["state"] == "RUNNING":
        return f"pid {agent['pid']}, uptime {duration(agent.get('uptime_s') or 0)}"
    detail = "" if _has_long_detail(agent) else str(agent.get("detail") or "")
    if not agent.get("detail") and agent.get("retry_in_s") is not None:
        return f"next start in {agent['retry_in_s']:.1f} s"
    return detail


def _counts(name: str, flows: list[dict[str, Any]]) -> str:
    """Return the counts of what has left this agent's container, has entered it, and still waits to enter it."""
    sent = [flow for flow in flows if flow["from"] == name]
    received = [flow for flow in flows if flow["to"] == name]
    parts = [f"out {flow['delivered']}" for flow in sent]
    parts += [f"about {flow['waiting_files']:,} files wait" for flow in sent if flow.get("waiting_files", 0) >= _MANY]
    parts += [_refused(flow) for flow in sent if flow.get("refused") or flow.get("refused_now")]
    for flow in received:
        parts.append(f"in {flow['delivered']}")
        for key, word in (
            ("pending", "pending"),
            ("in_doubt", "in doubt"),
            ("missed", "missed"),
            ("dead_letters", "dead"),
        ):
            if count := flow.get(key):
                is_cut = key == "dead_letters" and count >= _MOST_LETTERS
                parts.append(f"{count}{'+' if is_cut else ''} {word}{_oldest(flow) if key == 'pending' else ''}")
    return "  ".join(parts)


def _oldest(flow: dict[str, Any]) -> str:
    """Return the age of the oldest pending message, once it is old enough to matter."""
    age = flow.get("oldest_pending_s")
    return f" (oldest {duration(age)})" if age is not None and age >= _OLD else ""


def _refused(flow: dict[str, Any]) -> str:
    """Return how many files were ever refused, and how many of them are there now."""
    ever, now = flow.get("refused", 0), flow.get("refused_now", 0)
    return f"{ever} refused" + (f" ({now} still there)" if now else "")


def _coloured(line: str, state: str) -> str:
    """Return `line` with its state coloured, which is its second word: names of agents have no blanks."""
    name, rest = line.split(" ", 1)
    return f"{name} " + rest.replace(state, f"\x1b[{_COLOURS.get(state, _YELLOW)}m{state}\x1b[0m", 1)
