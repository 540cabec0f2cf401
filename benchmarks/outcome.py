"""What a run has found: medians over its rounds, ratios, the table, the JSON file; and what has become slower."""

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
_UNITS = {"rate": "messages/s", "round_trip": "µs", "cpu": "µs CPU/message", "p50": "µs", "p90": "µs", "p99": "µs"}


def medians(rounds: Rounds) -> dict[str, Figures]:
    """By subject and metric."""
    return {
        name: {metric: median(figures[metric] for figures in every) for metric in every[0]}
        for name, every in rounds.items()
        if every
    }


def ratios(found: Mapping[str, Figures]) -> Iterator[tuple[Goal, float]]:
    """Each goal of which both sides were measured, with its value."""
    for goal in GOALS:
        ours = found.get(goal.subject, {}).get(goal.metric)
        theirs = 1.0 if goal.against is None else found.get(goal.against, {}).get(goal.metric)
        if ours is not None and theirs:
            yield goal, ours / theirs


def document(rounds: Rounds) -> dict[str, Any]:
    """As it is written to docs/bench.json."""
    found = medians(rounds)
    return {
        "when": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "rounds": max(map(len, rounds.values()), default=0),
        "goals": [
            {"title": goal.title, "value": _rounded(value), "goal": _goal(goal), "met": goal.met(value)}
            for goal, value in ratios(found)
        ],
        "medians": {name: {metric: _rounded(value) for metric, value in f.items()} for name, f in found.items()},
    }


def tables(rounds: Rounds) -> str:
    """For people: every median, then the ratios and goals, in Markdown."""
    found = medians(rounds)
    lines = ["| measured | median | and |", "|---|---:|---|"]
    for name, figures in found.items():
        first, *others = [f"{_number(value)} {_UNITS.get(metric, metric)}" for metric, value in _shown(figures)]
        lines.append(f"| {name} | {first} | {', '.join(others)} |")
    lines += ["", "| work | against | measured | goal | |", "|---|---|---:|---|---|"]
    for goal, value in ratios(found):
        shown = f"{value:.2f} ×" if goal.against else _number(value)
        verdict = "met" if goal.met(value) else "**not met**"
        lines.append(f"| {goal.title} | {goal.against or '-'} | {shown} | {_goal(goal)} | {verdict} |")
    return "\n".join(lines)


def regressions(found: Mapping[str, Figures], recorded: Mapping[str, float], tolerance: float) -> list[str]:
    """A line for each ratio that is worse than the recorded one by more than `tolerance` (0.3 is 30 %)."""
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
    """What `record` has written."""
    recorded: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return recorded


def record(path: Path, found: Mapping[str, Figures]) -> None:
    """Keep these ratios as those to be held."""
    values = {goal.title: _rounded(value) for goal, value in ratios(found)}
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _shown(figures: Figures) -> Iterator[tuple[str, float]]:
    for metric, value in figures.items():
        if not metric.startswith("uss"):
            yield metric, value
    for metric, value in figures.items():
        if metric.startswith("uss"):
            yield f"kB USS {metric[4:]}", value / 1000


def _goal(goal: Goal) -> str:
    limit = f"{goal.limit:g} ×" if goal.against else _number(goal.limit)
    return f"{'≥' if goal.at_least else '≤'} {limit}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
