"""`nsbridgectl top` as lines: numbers in few characters, a table for any width, and what the keys do. No I/O.

Names come from configurations and details from containers: both are escaped, and cut where there is no room.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nsbridge.config.text import duration, escape
from nsbridge.supervisor.cli.commands.nsbridgectl import TOP_KEYS
from nsbridge.supervisor.cli.top import Row, Sample, ordered

_ONE_DIGIT = 9.95  # below it there is room for one behind the point
_FOUR_DIGITS = 1000


def amount(number: float | None) -> str:
    """Return a number of messages or percents: three digits that count, in at most 5 characters; - for None."""
    if number is None:
        return "-"
    if number % 1 and number < _ONE_DIGIT:
        return f"{number:.1f}"
    return _scaled(number, 1000, ("", "k", "M", "G", "T"))


def size(number: float | None) -> str:
    """Return a number of bytes in units of 1024, in at most 5 characters; - for None."""
    return "-" if number is None else _scaled(number, 1024, ("", "K", "M", "G", "T"))


def _scaled(number: float, base: int, units: Sequence[str]) -> str:
    unit = 0
    while round(number) >= _FOUR_DIGITS and unit + 1 < len(units):
        number, unit = number / base, unit + 1
    return f"{number:.1f}{units[unit]}" if unit and number < _ONE_DIGIT else f"{number:.0f}{units[unit]}"


@dataclass(frozen=True, slots=True)
class Column:
    """`width` is negative where the cells stand to the right."""

    title: str
    width: int
    cell: Callable[[Row], str]


# In the order in which they are given up where there is no room, the last first; shown in the order of _SHOWN.
_COLUMNS = (
    Column("STATE", 8, lambda row: row.state),
    Column("OUT/S", -6, lambda row: amount(row.out)),
    Column("IN/S", -6, lambda row: amount(row.in_)),
    Column("PENDING", -7, lambda row: amount(row.pending)),
    Column("CPU%", -5, lambda row: amount(row.cpu)),
    Column("MEM", -5, lambda row: size(row.memory)),
    Column("BYTES/S", -7, lambda row: size(row.bytes)),
)
_SHOWN = ("STATE", "OUT/S", "IN/S", "BYTES/S", "PENDING", "CPU%", "MEM")
_LEAST_NAME, _LEAST_NOTE = 12, 10  # columns


def table(shown: Sequence[Row], width: int) -> tuple[str, list[str]]:
    """Return (heading, a line for each row), at most `width` columns: names first, and a note where room is left."""
    longest = max([_LEAST_NAME, *(len(row.name) for row in shown)])
    columns = list(_COLUMNS)
    while columns and min(longest, _LEAST_NAME) + _width(columns) > width:
        columns.pop()
    columns.sort(key=lambda column: _SHOWN.index(column.title))
    names = min(longest, width - _width(columns))
    note = width - _width(columns) - names - 2
    heading = " ".join([_fit("NAME", names), *(_fit(column.title, column.width) for column in columns)])
    lines = []
    for row in shown:
        cells = [_fit(escape(row.name), names), *(_fit(column.cell(row), column.width) for column in columns)]
        if note >= _LEAST_NOTE:
            cells.append(" " + _cut(escape(_note(row)), note))
        lines.append(" ".join(cells).rstrip())
    return heading.rstrip(), lines


def reasons(rows: Sequence[Row], width: int, most: int) -> list[str]:
    """Return in at most `most` lines why agents do not run or wait, each reason in full; those in trouble first."""
    lines: list[str] = []
    spoken = [row for row in sorted(rows, key=lambda row: not row.is_in_trouble) if row.detail]
    for number, row in enumerate(spoken):
        text = textwrap.wrap(escape(f"{row.name}: {row.detail}"), max(width, 2), subsequent_indent="  "[: width - 1])
        left = len(spoken) - number
        room = most - len(lines) - (left > 1)  # a line for how many more there are
        if len(text) > room:
            return [*lines, _cut(f"and {left} more with a reason: nsbridgectl status", width)][:most]
        lines += text
    return lines


def _width(columns: Sequence[Column]) -> int:
    return sum(abs(column.width) + 1 for column in columns)


def _note(row: Row) -> str:
    """Return what is wrong, or else where it is."""
    return row.detail or f"{row.container} {row.endpoint}"


def _fit(text: str, width: int) -> str:
    """Return the text in exactly that many columns; to the right of them where `width` is negative."""
    return _cut(text, width).ljust(width) if width > 0 else _cut(text, -width).rjust(-width)


def _cut(text: str, width: int) -> str:
    """Return `text`, or its beginning with a ~ if it is longer."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "~"


def summary(look: Sample) -> list[str]:
    """Return the whole in three lines."""
    daemon, process = look.answer["daemon"], look.answer["daemon_process"]
    about = f"nsbridged {daemon['version']}, pid {daemon['pid']}, up {duration(daemon['uptime_s'])}"
    states: dict[str, int] = {}
    for row in sorted(look.rows, key=lambda row: (row.state != "RUNNING", row.state)):
        states[row.state] = states.get(row.state, 0) + 1
    counted = ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
    if blocked := sum(row.state == "RUNNING" and row.is_in_trouble for row in look.rows):
        counted += f" ({blocked} blocked)"
    cpu = [row.cpu for row in look.rows if row.cpu is not None]
    used = f"CPU {amount(sum(cpu)) if cpu else '-'} %, memory {size(sum(row.memory or 0 for row in look.rows))}"
    return [
        escape(f"{about}, memory {size(process['own'])}"),
        escape(f"agents: {counted}; {used}"),
        f"messages: {amount(look.messages)}/s, {size(look.bytes)} bytes/s, {amount(look.pending)} pending",
    ]


class View:
    """Screen of a person: which order, from where on; the newest look, and the keys that were pressed."""

    def __init__(self, sort: str) -> None:
        self.sort = sort
        self.turned = False
        self.first = 0  # of the rows that are shown
        self.look: Sample | None = None
        self._page = 1

    def press(self, key: str) -> None:
        """Do what a key of _KEYS or a word like `down` means; any other means nothing."""
        if key in _KEYS:
            self.turned = not self.turned if self.sort == _KEYS[key] else False
            self.sort, self.first = _KEYS[key], 0
        elif key in ("up", "down", "page up", "page down"):
            step = self._page if "page" in key else 1
            self.first += step if "down" in key else -step
        elif key == "home":
            self.first = 0

    def frame(self, width: int, height: int) -> tuple[list[str], int]:
        """Return (lines that fit into so many columns and rows, which of them is the heading)."""
        if self.look is None:
            return ["asking the daemon"[:width]], -1
        above = [_cut(line, width) for line in summary(self.look)] if height >= _ROOMY else []
        below = [_cut(line, width) for line in self._legend()] if height >= _ROOMY else []
        room = max(1, height - len(above) - len(below) - 1)
        everything = ordered(self.look.rows, self.sort, turned=self.turned)
        why = self._reasons(everything, width, room) if height >= _ROOMY else []
        self._page = max(1, room - len(why))
        self.first = max(0, min(self.first, len(everything) - self._page))
        heading, lines = table(everything[self.first : self.first + self._page], width)
        lines += why
        lines += [""] * (room - len(lines))
        return [*above, _cut(heading, width), *lines, *below][:height], len(above)

    @staticmethod
    def _reasons(rows: Sequence[Row], width: int, room: int) -> list[str]:
        """Return the lines below the table: they get what it leaves free, and at least a third."""
        if not (found := reasons(rows, width, max(room - len(rows) - 1, room // 3 - 1))):
            return []
        return ["", *found]

    def _legend(self) -> list[str]:
        keys = [f"[{key}]{word[1:]}" for key, word in _KEYS.items()]
        keys = [key.upper() if key[1] == self.sort[0] else key for key in keys]
        return [f"sort: {' '.join(keys)}, again to reverse", "[q]uit, [space] refreshes at once, arrows scroll"]


_KEYS = {word[0]: word for word in TOP_KEYS}
_ROOMY = 9  # rows from which on there is more than the table
