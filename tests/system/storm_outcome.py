"""Results of a kill storm (storm.py): compared with the promise, and as a report in Markdown."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

EXACTLY_ONCE, AT_LEAST_ONCE = DELIVERIES = ("exactly-once", "at-least-once")
_COLUMNS = (
    "delivery",
    "direction",
    "strikes",
    "SIGKILLs",
    "messages",
    "lost",
    "repeated",
    "out of order",
    "damaged",
    "wrong type",
    "in doubt",
    "`delivered` in status",
    "`bytes` in status",
)


@dataclass(frozen=True)
class Plan:
    """One storm."""

    pair: tuple[str, str]
    delivery: str
    strikes: int
    messages: int = 0  # sent at least, both directions together
    seed: int = 1
    pause: int = 0  # microseconds between the messages of each direction

    def __str__(self) -> str:
        return f"{'-'.join(self.pair)} {self.delivery}"


@dataclass
class Direction:
    """Counts of one direction, of the two programs and of nsbridge."""

    name: str
    sent: int
    sent_bytes: int
    audit: dict[str, int]
    flow: dict[str, Any]
    repeats_allowed: int

    @property
    def lost(self) -> int:
        """Return the messages that were sent and never received."""
        return self.sent - self.audit["count"]

    def problems(self) -> Iterator[str]:
        """Yield what does not hold."""
        yield from self.faults()
        yield from self.miscounts()

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the messages."""
        found = {name: self.audit[name] for name in ("out_of_order", "corrupt", "wrong_type", "missing")}
        if self.lost or any(found.values()):
            yield f"{self.name}: lost {self.lost}, {found}"
        if self.audit["repeated"] > self.repeats_allowed:
            yield f"{self.name}: {self.audit['repeated']} repeated, {self.repeats_allowed} allowed"

    def miscounts(self) -> Iterator[str]:
        """Yield what is wrong with the status."""
        if (self.flow["delivered"], self.flow["pending"]) != (self.sent, 0):
            yield f"{self.name}: {self.sent} sent, and status says {self.flow}"
        if self.flow["bytes"] > self.sent_bytes:
            yield f"{self.name}: {self.sent_bytes} bytes sent, and status says {self.flow['bytes']}"
        if self.flow["in_doubt"] or self.flow["dead"]:
            yield f"{self.name}: in doubt {self.flow['in_doubt']}, dead {self.flow['dead']}"


@dataclass
class Outcome:
    """Results of one storm."""

    plan: Plan
    seconds: float
    strikes: Counter[str]
    signals: int  # SIGKILLs sent to processes that lived
    directions: list[Direction]
    internal_errors: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Return all that does not hold; empty if the promise was kept."""
        found = [problem for direction in self.directions for problem in direction.problems()]
        return [f"{self.plan}: {problem}" for problem in found + self.internal_errors]


def report(outcomes: Sequence[Outcome], engine: str, seed: int) -> str:
    """Return the report in Markdown."""
    rows = [_row(outcome, direction) for outcome in outcomes for direction in outcome.directions]
    problems = [f"* BROKEN: {problem}" for outcome in outcomes for problem in outcome.problems()]
    machine = (
        f"Linux {os.uname().release}, Python {sys.version.split()[0]}, {os.cpu_count()} cores, containers: {engine}, "
        f"seed {seed}, {sum(outcome.seconds for outcome in outcomes):.0f} s."
    )
    table = [_line(_COLUMNS), _line(["---"] * 2 + ["--:"] * (len(_COLUMNS) - 2)), *rows]
    return "\n".join([_summary(outcomes), "", machine, "", *table, "", *problems]).rstrip()


def _summary(outcomes: Sequence[Outcome]) -> str:
    directions = [direction for outcome in outcomes for direction in outcome.directions]
    strikes = sum((outcome.strikes for outcome in outcomes), Counter[str]())
    exactly = [d for outcome in outcomes if outcome.plan.delivery == EXACTLY_ONCE for d in outcome.directions]
    return (
        f"**{strikes.total():,} strikes** ({', '.join(f'{what} {count}' for what, count in strikes.most_common())}) "
        f"with **{sum(outcome.signals for outcome in outcomes):,} SIGKILLs**, "
        f"**{sum(direction.sent for direction in directions):,} messages** "
        f"({sum(direction.sent_bytes for direction in directions) / 1e6:,.0f} MB): "
        f"{sum(direction.lost for direction in directions)} lost, "
        f"{sum(direction.audit['out_of_order'] for direction in directions)} out of order, "
        f"{sum(direction.audit['repeated'] for direction in exactly)} repeated with exactly-once."
    )


def _row(outcome: Outcome, direction: Direction) -> str:
    audit, flow = direction.audit, direction.flow
    missed = direction.sent_bytes - flow["bytes"]
    return _line(
        [
            outcome.plan.delivery,
            direction.name,
            f"{outcome.strikes.total():,}",
            f"{outcome.signals:,}",
            f"{direction.sent:,}",
            direction.lost,
            f"{audit['repeated']}, may {direction.repeats_allowed}" if direction.repeats_allowed else audit["repeated"],
            audit["out_of_order"],
            audit["corrupt"],
            audit["wrong_type"],
            flow["in_doubt"],
            "exact" if flow["delivered"] == direction.sent else flow["delivered"],
            f"{-missed / direction.sent_bytes:.3%}" if missed else "exact",
        ]
    )


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
