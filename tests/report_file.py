"""Documents whose end is measured: what is above the mark is written by people, what is below by a make target."""

from __future__ import annotations

from pathlib import Path


def put(path: Path, target: str, text: str) -> None:
    """Replace what is below the mark of `make TARGET`."""
    mark = f"<!-- what follows is written by `make {target}` -->"
    before = path.read_text(encoding="utf-8").partition(mark)[0]
    path.write_text(f"{before}{mark}\n\n{text}", encoding="utf-8")
