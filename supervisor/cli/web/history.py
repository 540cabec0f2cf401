"""The last 15 minutes of every flow: rates now, and the points of the small plots. It lives in the web process alone.

Of each flow STEPS values are kept for each plot, one every STEP seconds, in arrays: 200 routes take some 3 MB.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from nsbridge.supervisor.cli.web.snapshot import Snapshot

STEP = 5.0  # seconds
STEPS = 180
PLOTS = ("rate", "pending", "age")
POINTS = 60  # of a plot: each is the most of STEPS / POINTS values
WIDTH, HEIGHT = 120, 20  # of a plot, in units of its picture
_WINDOW = 5.0  # seconds over which a rate is taken


class Ends(NamedTuple):
    """The two ends of a flow."""

    source: str
    sink: str


class Track:
    """One flow. Times are of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.rate = 0.0  # messages a second
        self._counts: deque[tuple[float, int]] = deque()  # (time, messages) of the last _WINDOW
        self._values = {plot: array("f") for plot in PLOTS}

    def see(self, now: float, flow: dict[str, Any]) -> None:
        """Take the counters of a snapshot."""
        if self._counts and flow["delivered"] < self._counts[-1][1]:
            self._counts.clear()  # its journal was made anew
        self._counts.append((now, flow["delivered"]))
        while len(self._counts) > 2 and self._counts[1][0] <= now - _WINDOW:  # noqa: PLR2004
            self._counts.popleft()
        since, messages = self._counts[0]
        if now > since:
            self.rate = (flow["delivered"] - messages) / (now - since)

    def keep(self, flow: dict[str, Any]) -> None:
        """Add a value to each plot."""
        for plot, value in zip(PLOTS, (self.rate, flow["pending"], flow.get("oldest_pending_s") or 0.0), strict=True):
            values = self._values[plot]
            values.append(value)
            if len(values) > 2 * STEPS:
                del values[:STEPS]

    def points(self, plot: str) -> str:
        """Return the points of an SVG polyline, newest at the right edge; empty if all values are 0."""
        values = self._values[plot][-STEPS:]
        if not any(values):
            return ""
        each = STEPS // POINTS
        first = len(values) % each
        heaps = [values[:first]] if first else []
        heaps += [values[at : at + each] for at in range(first, len(values), each)]
        tops = [max(heap) for heap in heaps]
        highest, shift = max(tops), POINTS - len(tops)
        scale = WIDTH / (POINTS - 1)
        return " ".join(
            f"{(shift + at) * scale:.0f},{HEIGHT - 1 - top / highest * (HEIGHT - 2):.1f}" for at, top in enumerate(tops)
        )

    def highest(self, plot: str) -> float:
        """Return the most in 15 minutes."""
        return max(self._values[plot][-STEPS:], default=0.0)


class History:
    """The tracks of all flows."""

    def __init__(self) -> None:
        self.tracks: dict[Ends, Track] = {}
        self._kept_at = float("-inf")

    def see(self, now: float, snapshot: Snapshot) -> bool:
        """Take a snapshot; True if the plots have a new value."""
        flows = {Ends(flow["from"], flow["to"]): flow for flow in snapshot.flows}
        self._forget_all_but(flows)
        is_due = now - self._kept_at >= STEP
        for ends, flow in flows.items():
            track = self.tracks.setdefault(ends, Track())
            track.see(now, flow)
            if is_due:
                track.keep(flow)
        if is_due:
            self._kept_at = now
        return is_due

    def _forget_all_but(self, flows: Iterable[Ends]) -> None:
        for gone in self.tracks.keys() - set(flows):
            del self.tracks[gone]
