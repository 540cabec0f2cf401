"""The figures of README: what nsbridge costs, from docs/bench.json and docs/scale.md.

`make bench` and `make scale` write them; tests/unit/test_readme.py holds README to them. By hand:

    python -m benchmarks.readme
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DOCS = Path(__file__).parents[1] / "docs"
_README = Path(__file__).parents[1] / "README.md"
_BEGIN = "<!-- `make bench` and `make scale` write from here -->\n\n"
_END = "\n<!-- to here -->"
_FLOWS = ("log→queue", "queue→log", "queue→queue", "spool→queue", "queue→spool")


def put() -> None:
    """Write the figures into README."""
    before, after = around(_README.read_text(encoding="utf-8"))
    _README.write_text(f"{before}{written()}{after}", encoding="utf-8")


def written() -> str:
    """Return the block of README as it has to be, with its marks."""
    document = json.loads((_DOCS / "bench.json").read_text(encoding="utf-8"))
    return f"{_BEGIN}{table(document, (_DOCS / 'scale.md').read_text(encoding='utf-8'))}\n{_END}"


def around(readme: str) -> tuple[str, str]:
    """Return what is before and after the block."""
    before, _begin, rest = readme.partition(_BEGIN)
    return before, rest.partition(_END)[2]


def table(document: Mapping[str, Any], scale: str) -> str:
    """Return the table, of the figures of `docs/bench.json` and the text of docs/scale.md."""
    found = document["medians"]
    rates = ", ".join(f"{name.replace('→', ' → ')} {_thousands(found[name]['rate'])}" for name in _FLOWS)
    cpu = sorted(found[name]["cpu"] for name in _FLOWS)
    echo = (
        f"{found['echo']['p50']:.0f} µs; through a C bridge without promises "
        f"{found['echo, C bridge']['p50']:.0f}, through NATS {found['echo, NATS']['p50']:.0f}"
    )
    rows = (
        ("a daemon that runs as root", f"{_mib(scale, 'supervisor')} MiB of memory"),
        ("two agents for each route, without privileges", f"{_mib(scale, 'queue agent')} MiB each"),
        ("a message and its answer, files ↔ queue", echo),
        ("messages a second, exactly once, 256 B", rates),
        ("CPU time of such a message", f"{cpu[0]:.0f} to {cpu[-1]:.0f} µs"),
    )
    lines = [f"| {what} | {costs} |" for what, costs in rows]
    return "\n".join(["| it costs | |", "|---|---|", *lines])


def _thousands(rate: float) -> str:
    return f"{float(f'{rate:.2g}'):,.0f}"


def _mib(scale: str, process: str) -> str:
    """Return the larger of the medians of both ways of delivery."""
    medians = re.findall(rf"^\| \S+ \| {process} \| ([\d.]+) MiB", scale, re.MULTILINE)
    return f"{max(map(float, medians)):.0f}"


if __name__ == "__main__":
    put()
