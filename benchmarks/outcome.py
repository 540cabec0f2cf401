"""Results of a run: medians over its rounds, ratios, the table, the JSON file; and what has become slower."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.flows import Figures
from benchmarks.subjects import GOALS, Goal

Rounds = Mapping[str, Sequence[Figures]]  # by subject, one item a round
_USS = ("uss_source", "uss_sink", "uss_sender")
_COLUMNS = {  # by the metric that comes first in a subject's figures
    "p50": ("p50", "p90", "p99", "max", "cpu"),
    "rate": ("rate", "cpu", *_USS),
    "cpu": ("cpu",),
    "status": ("status",),
}
_HEADS = {
    **{name: f"{name}, µs" for name in ("p50", "p90", "p99", "max")},
    "rate": "messages/s",
    "cpu": "µs CPU a message",
    "status": "ms",
    **{name: f"{name[4:]}'s USS, kB" for name in _USS},
}


def medians(rounds: Rounds) -> dict[str, Figures]:
    """Return the medians by subject and metric."""
    return {
        name: {metric: median(figures[metric] for figures in every) for metric in every[0]}
        for name, every in rounds.items()
        if every
    }


def ratios(found: Mapping[str, Figures]) -> Iterator[tuple[Goal, float]]:
    """Yield each goal of which both sides were measured, with its value."""
    for goal in GOALS:
        ours = found.get(goal.subject, {}).get(goal.metric)
        theirs = 1.0 if goal.against is None else found.get(goal.against, {}).get(goal.metric)
        if ours is not None and theirs:
            yield goal, ours / theirs


def document(rounds: Rounds, load: float) -> dict[str, Any]:
    """Return the document for docs/bench.json; `load` is the load average before the run, 0 on a quiet machine."""
    found = medians(rounds)
    return {
        "when": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "load": load,
        "rounds": max(map(len, rounds.values()), default=0),
        "goals": [_goal_entry(goal, value) for goal, value in ratios(found)],
        "medians": {name: {metric: _rounded(value) for metric, value in f.items()} for name, f in found.items()},
    }


def _goal_entry(goal: Goal, value: float) -> dict[str, Any]:
    told = {"title": goal.title, "against": goal.against, "value": _rounded(value)}
    return told if goal.limit is None else told | {"goal": _goal(goal), "limit": goal.limit, "met": goal.met(value)}


def heading(about: Mapping[str, Any]) -> str:
    """Return the sentence above the tables, with the date and the machine of a `document`."""
    machine = about["machine"]
    where = f"{machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}"
    rounds = f"{about['rounds']} round{'s' if about['rounds'] > 1 else ''} in one run"
    return f"Medians of {rounds}, {about['when']}, {where}; load average before it {about['load']:.1f}."


def tables(rounds: Rounds) -> str:
    """Return Markdown for people: the ratios with their goals, then every median."""
    found = medians(rounds)
    lines = comparison(rounds)
    for first, columns in _COLUMNS.items():
        chosen = {name: figures for name, figures in found.items() if next(iter(figures)) == first}
        used = [metric for metric in columns if any(metric in figures for figures in chosen.values())]
        if chosen:
            heads = "|".join(_HEADS[metric] for metric in used)
            rows = [[name, *(_cell(figures, metric) for metric in used)] for name, figures in chosen.items()]
            lines += ["", *_table(f"measured|{heads}", rows)]
    return "\n".join(lines)


def comparison(rounds: Rounds) -> list[str]:
    """Return the lines of the table of ratios, with their goals."""
    rows = [_compared(goal, value) for goal, value in ratios(medians(rounds))]
    return _table("work|against|measured|goal|", rows)


def _compared(goal: Goal, value: float) -> list[str]:
    shown = f"{value:.3g} ×" if goal.against else _number(value)
    verdict = "" if goal.limit is None else "met" if goal.met(value) else "**not met**"
    return [goal.title, goal.against or "-", shown, _goal(goal), verdict]


def _table(heads: str, rows: Sequence[Sequence[str]]) -> list[str]:
    count = heads.count("|")
    return [f"|{heads}|", f"|---|{'---:|' * count}", *("| " + " | ".join(row) + " |" for row in rows)]


def _cell(figures: Figures, metric: str) -> str:
    value = figures.get(metric)
    if value is None:
        return ""
    return _number(value / 1000 if metric.startswith("uss") else value)


def regressions(found: Mapping[str, Figures], recorded: Mapping[str, float], tolerance: float) -> list[str]:
    """Return a line for each ratio that is worse than the recorded one by more than `tolerance` (0.3 is 30 %)."""
    worse = []
    for goal, value in ratios(found):
        before = recorded.get(goal.title)
        if before is None:
            continue
        limit = before / (1 + tolerance) if goal.at_least else before * (1 + tolerance)
        if (value < limit) if goal.at_least else (value > limit):
            worse.append(f"{goal.title}: {_number(value)}, recorded {_number(before)}, limit {_number(limit)}")
    return worse


def read_recorded(path: Path) -> dict[str, float]:
    """Read the file that `record` has written."""
    recorded: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return recorded


def record(path: Path, found: Mapping[str, Figures]) -> None:
    """Keep these ratios as those to be held."""
    values = {goal.title: _rounded(value) for goal, value in ratios(found) if goal.limit is not None}
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _goal(goal: Goal) -> str:
    if goal.limit is None:
        return ""
    limit = f"{goal.limit:g} ×" if goal.against else _number(goal.limit)
    return f"{'≥' if goal.at_least else '≤'} {limit}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
