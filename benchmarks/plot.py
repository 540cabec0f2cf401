"""The picture of a run: docs/bench.svg, from docs/bench.json (`python -m benchmarks.plot` draws it anew)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.subjects import C_ECHO, ECHO, NATS_ECHO, ROUTES, SHARED_ECHO, SIZES

_OURS, _THEIRS, _MISSED = "#2a6fbb", "#9a9a9a", "#d08a2e"
_STYLES = {"kernel": _THEIRS, "log→queue": "#2a6fbb", "queue→log": "#3a9d5d", "queue→queue": "#8a4fb5"}


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw four panels: the goals, the latency, throughput by size and by number of routes."""
    matplotlib: Any = importlib.import_module("matplotlib")  # only the extra `bench` has it
    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "nsbridge",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    figure, panels = importlib.import_module("matplotlib.pyplot").subplots(2, 2, figsize=(11, 8))
    _goals(panels[0][0], document["goals"])
    medians = document["medians"]
    _latency(panels[0][1], medians)
    _by_size(panels[1][0], medians)
    _by_routes(panels[1][1], medians)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _goals(panel: Any, goals: list[dict[str, Any]]) -> None:
    """Draw bars: how many times better than the goal; 1 is the goal."""
    shown = [goal for goal in goals if "limit" in goal][::-1]
    values = [
        goal["limit"] / goal["value"] if goal["goal"][0] == "≤" else goal["value"] / goal["limit"] for goal in shown
    ]
    panel.barh([goal["title"] for goal in shown], values, color=[_OURS if goal["met"] else _MISSED for goal in shown])
    panel.axvline(1, color="black", linewidth=1)
    panel.set_xscale("log")
    panel.set_xticks((0.1, 0.2, 0.5, 1, 2), ("0.1", "0.2", "0.5", "goal", "2 × better"))
    panel.set_title("against its goals (right of the line: met)")
    panel.tick_params(axis="y", labelsize=7)


def _latency(panel: Any, medians: Mapping[str, Any]) -> None:
    marks = ("p50", "p90", "p99", "max")
    for name, colour in ((C_ECHO, "black"), (ECHO, _OURS), (SHARED_ECHO, _THEIRS), (NATS_ECHO, _MISSED)):
        if name in medians:
            label = "nsbridge" if name == ECHO else name.partition(", ")[2]
            panel.plot(marks, [medians[name][mark] for mark in marks], marker="o", color=colour, label=label)
    panel.set_yscale("log")
    panel.set_ylabel("µs")
    panel.set_title("round trip of an echo, 64 bytes")
    panel.legend()


def _by_size(panel: Any, medians: Mapping[str, Any]) -> None:
    for name, colour in _STYLES.items():
        points = [(size, medians[f"{name} {size} B"]["rate"]) for size in SIZES if f"{name} {size} B" in medians]
        if points:
            panel.plot(*zip(*points, strict=True), marker="o", color=colour, label=name)
    panel.set_xscale("log", base=2)
    panel.set_xticks(SIZES, [str(size) for size in SIZES])
    panel.set_yscale("log")
    panel.set_xlabel("bytes a message")
    panel.set_ylabel("messages/s")
    panel.set_title("one way, exactly-once, by size")
    panel.legend()


def _by_routes(panel: Any, medians: Mapping[str, Any]) -> None:
    for name in ("log→queue", "queue→queue"):
        points = [
            (str(count), medians[key]["rate"]) for count in ROUTES if (key := f"{name}, {count} routes") in medians
        ]
        if points:
            panel.plot(*zip(*points, strict=True), marker="o", color=_STYLES[name], label=name)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("routes")
    panel.set_ylabel("messages/s, together")
    panel.set_title("one way, exactly-once, 256 bytes, by routes")
    panel.legend()


if __name__ == "__main__":
    docs = Path(__file__).parents[1] / "docs"
    draw(json.loads((docs / "bench.json").read_text(encoding="utf-8")), docs / "bench.svg")
