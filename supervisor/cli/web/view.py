"""Texts of an agent's row: the same for the page as it is sent and for its live changes.

A row is about one agent. Numbers of messages on the way belong to the row of the agent whose container they are to
enter, as in `nsbridgectl status`. Every text may hold what a container has chosen: the template escapes it, and the
script sets it as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nsbridge.config.text import escape
from nsbridge.supervisor.cli.web.history import PLOTS, Ends, History
from nsbridge.supervisor.cli.web.snapshot import TONES, Snapshot, route_of, tone

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
SORTS = ("name", "trouble", "rate", "pending", "age", "dead", "restarts")
_FEW = 10  # below, a digit after the point matters
_LETTERS_COUNTED = 1000  # `status` counts no further


@dataclass(frozen=True, slots=True)
class Row:
    """One agent's row; `cells` by the name of the column, `order` by the key that is sorted by."""

    name: str
    route: str
    tone: str
    cells: Mapping[str, str]
    order: Mapping[str, float]
    plots: Mapping[str, str] = field(default_factory=dict)

    def item(self) -> dict[str, object]:
        """Return the JSON object."""
        return asdict(self)


def rows(snapshot: Snapshot, history: History) -> dict[str, Row]:
    """Return the row of each agent, by its name, in the daemon's order."""
    into = {flow["to"]: flow for flow in snapshot.flows}
    out = {flow["from"]: flow for flow in snapshot.flows}
    return {
        agent["name"]: _row(agent, into.get(agent["name"]), out.get(agent["name"]), history)
        for agent in snapshot.agents
    }


def _row(agent: dict[str, Any], into: dict[str, Any] | None, out: dict[str, Any] | None, history: History) -> Row:
    came, went = _track(history, into), _track(history, out)
    of = into or {}
    rate_in, rate_out = came.rate if came else None, went.rate if went else None
    age, refused = of.get("oldest_pending_s"), out.get("refused") if out else None
    how = tone(agent)
    cells = {
        "state": _state(agent),
        "why": _why(agent),
        "container": escape(f"{agent['container']} {agent['endpoint']}"),
        "out": _rate(rate_out),
        "in": _rate(rate_in),
        "pending": _count(of.get("pending")),
        "age": "" if age is None else duration(age),
        "dead": _letters(of.get("dead_letters")) if into else "",
        "refused": _count(refused),
        "restarts": _count(agent["restarts"]),
    }
    order = {
        "trouble": float(TONES.index(how)),
        "rate": (rate_in or 0.0) + (rate_out or 0.0),
        "pending": float(of.get("pending") or 0),
        "age": float(age or 0.0),
        "dead": float(of.get("dead_letters") or 0),
        "restarts": float(agent["restarts"]),
    }
    plots = {plot: came.points(plot) if came else "" for plot in PLOTS}
    return Row(agent["name"], route_of(agent["name"]), how, cells, order, plots)


def _track(history: History, flow: dict[str, Any] | None) -> Any:
    return None if flow is None else history.tracks.get(Ends(flow["from"], flow["to"]))


def _state(agent: dict[str, Any]) -> str:
    """Return the state; a running agent that does not work is blocked or wedged, not RUNNING."""
    phase = agent["phase"]
    return str(phase) if agent["state"] == "RUNNING" and phase in ("blocked", "wedged") else str(agent["state"])


def _why(agent: dict[str, Any]) -> str:
    detail = str(agent["detail"]).removeprefix("blocked: ").removeprefix("wedged: ")
    more = [f"again in {agent['retry_in_s']:.0f} s"] if agent["retry_in_s"] else []
    if minutes := int(agent.get("blocked_s") or 0) // _MINUTE:
        more.append(f"for {minutes} min")
    return escape("; ".join([detail, *more] if detail else more))


def _count(number: int | None) -> str:
    return f"{number:,}" if number else ""


def _letters(number: int | None) -> str:
    if number is None:
        return "?"
    return f"{number:,}+" if number >= _LETTERS_COUNTED else _count(number)


def _rate(rate: float | None) -> str:
    if rate is None:
        return "-"
    if not rate:
        return "0"
    return f"{rate:.1f}" if rate < _FEW else f"{rate:,.0f}"


def duration(seconds: float) -> str:
    """Return it in the two units that matter: 4.2 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    if seconds < _FEW:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


@dataclass(frozen=True, slots=True)
class Choice:
    """Rows that are chosen, and their order: the fields of the page's form."""

    text: str = ""
    trouble: bool = False
    sort: str = "name"


@dataclass(frozen=True, slots=True)
class RouteRows:
    """A route's rows stay together."""

    name: str
    rows: list[Row]


def chosen(all_rows: Iterable[Row], choice: Choice) -> list[RouteRows]:
    """Return the routes that have a chosen row, each with all of its rows."""
    routes: dict[str, RouteRows] = {}
    for row in all_rows:
        routes.setdefault(row.route, RouteRows(row.route, [])).rows.append(row)
    shown = [route for route in routes.values() if any(_is_chosen(row, choice) for row in route.rows)]
    if choice.sort != "name":
        shown.sort(key=lambda route: -max(row.order[choice.sort] for row in route.rows))
    return shown


def _is_chosen(row: Row, choice: Choice) -> bool:
    if choice.trouble and row.tone not in ("warn", "bad") and not row.order["dead"]:
        return False
    words = " ".join((row.name, row.cells["container"], row.cells["state"], row.cells["why"])).lower()
    return all(word in words for word in choice.text.lower().split())


def counts(all_rows: Iterable[Row]) -> dict[str, int]:
    """Return how many agents there are of each tone."""
    found: dict[str, int] = dict.fromkeys(TONES, 0)
    for row in all_rows:
        found[row.tone] += 1
    return found


def changes(before: Mapping[str, Row], after: Mapping[str, Row]) -> dict[str, Any]:
    """Return what is to be sent to a page that shows `before`: whole rows where the agent is new, else what changed."""
    changed = [_change(before.get(name), row) for name, row in after.items() if before.get(name) != row]
    return {"rows": changed, "gone": [name for name in before if name not in after]}


def _change(before: Row | None, after: Row) -> dict[str, object]:
    item = after.item()
    if before is not None:
        for key in ("cells", "plots"):
            old: Mapping[str, str] = getattr(before, key)
            item[key] = {name: value for name, value in getattr(after, key).items() if old.get(name) != value}
    return item
