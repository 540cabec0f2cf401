"""Text for people: escaping, tables, durations.

nsbridgectl imports this for every command a person types, so it imports nothing that costs time to load.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_COLOURS = {"RUNNING": "32", "FATAL": "31", "STOPPED": "0"}  # SGR codes; every other state is yellow
_YELLOW = "33"


def escape(text: str) -> str:
    r"""`text` with whatever is not printable spelled out (\x1b, \n, \udc80, \u202e), so that it can do nothing.

    A container chooses names and messages; a terminal obeys escape sequences, a log reader believes line breaks.
    Escaping what is already escaped changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def duration(seconds: float) -> str:
    """`seconds` as 2:03:11, with days before it if there are any (3d 2:03:11)."""
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hour}:{minute:02}:{second:02}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """`rows` of equally many cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def status(result: dict[str, Any], *, colour: bool) -> list[str]:
    """The lines of `nsbridgectl status`: a line for each agent of the status document in interface.md."""
    agents = [(agent, route["flows"]) for route in result["routes"] for agent in route["agents"]]
    if not agents:
        return ["no routes"]
    lines = []
    for line, (agent, _) in zip(table([_agent_row(*pair) for pair in agents]), agents, strict=True):
        shown = _coloured(line, str(agent["state"])) if colour else line
        lines.append(f"{shown}  {escape(str(agent['detail']))}" if _has_long_detail(agent) else shown)
    return lines


def tree(value: dict[str, Any], indent: str = "") -> list[str]:
    """Any JSON object as indented `key  value` lines."""
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
            lines.append(f"{indent}{escape(str(key)):{width}}  {_scalar(entry)}")
    return lines


def log_line(item: dict[str, Any]) -> str:
    """A record of `tail` as the daemon's text log has it."""
    name = str(item["name"]) or "nsbridged"
    return escape(f"{item['time']} {item['level']} {name} {item['message']}")


def _item(item: object, indent: str) -> list[str]:
    """An element of a list: an object of scalars is one line, one that has more inside it is a tree of its own."""
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
    if isinstance(value, list):
        return ", ".join(_scalar(entry) for entry in value)
    return escape(str(value))


_WIDEST_INFO = 40  # characters of a detail that stands in its column


def _agent_row(agent: dict[str, Any], flows: list[dict[str, Any]]) -> list[str]:
    cells = (agent["name"], agent["state"], _info(agent), agent["container"], agent["endpoint"])
    return [*(escape(str(cell)) for cell in cells), _counts(str(agent["name"]), flows)]


def _has_long_detail(agent: dict[str, Any]) -> bool:
    """Whether the detail goes to the end of its line: it would push every agent's counters off the screen."""
    return len(str(agent.get("detail") or "")) > _WIDEST_INFO


def _info(agent: dict[str, Any]) -> str:
    detail = "" if _has_long_detail(agent) else str(agent.get("detail") or "")
    if agent["state"] == "RUNNING":
        parts = [f"pid {agent['pid']}", f"uptime {duration(agent.get('uptime_s') or 0)}"]
        return ", ".join([*parts, detail] if detail else parts)
    if not agent.get("detail") and agent.get("retry_in_s") is not None:
        return f"next start in {agent['retry_in_s']:.1f} s"
    return detail


def _counts(name: str, flows: list[dict[str, Any]]) -> str:
    """What has left this agent's container, what has entered it, and what still waits to enter it."""
    sent = [flow for flow in flows if flow["from"] == name]
    received = [flow for flow in flows if flow["to"] == name]
    parts = [f"out {flow['delivered']}" for flow in sent]
    for flow in received:
        parts.append(f"in {flow['delivered']}")
        for key, word in (("pending", "pending"), ("in_doubt", "in doubt"), ("dead", "dead")):
            if flow.get(key):
                parts.append(f"{flow[key]} {word}")
    return "  ".join(parts)


def _coloured(line: str, state: str) -> str:
    """`line` with its state coloured, which is its second word: names of agents have no blanks."""
    name, rest = line.split(" ", 1)
    return f"{name} " + rest.replace(state, f"\x1b[{_COLOURS.get(state, _YELLOW)}m{state}\x1b[0m", 1)
