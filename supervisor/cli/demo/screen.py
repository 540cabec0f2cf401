"""Output that the person sees: the demo's own lines begin with `#`, everything else is what the programs print."""

from __future__ import annotations

import os
import sys

BOLD, DIM, RED, GREEN, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[0m"


class Screen:
    """Standard output, in colours if that is a terminal and NO_COLOR is not set; each line is written at once."""

    def __init__(self) -> None:
        self._out = sys.stdout.buffer
        self.colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def step(self, text: str) -> None:
        """Print a step: what is happening, and why."""
        self._line(f"# {text}", BOLD)

    def detail(self, text: str) -> None:
        """Print something about the step before."""
        self._line(f"#   {text}", DIM)

    def wrong(self, text: str) -> None:
        """Print something that should not be so."""
        self._line(f"# {text}", RED)

    def table(self, lines: list[str]) -> None:
        """Print lines that are coloured already."""
        for line in lines:
            self._line(line, "")

    def program(self, line: bytes) -> None:
        """Print a line of a container's program, byte for byte."""
        colour = GREEN if line.startswith(b"Recv ") else RED
        self._write(f"{colour}".encode() + line + PLAIN.encode() if self.colour else line)

    def prompt(self) -> None:
        """Ask for a line."""
        self._out.write(b"> ")
        self._out.flush()

    def end_line(self) -> None:
        """Leave a line that a prompt or a ^C has begun."""
        self._write(b"")

    def _line(self, text: str, colour: str) -> None:
        if self.colour and colour:
            text = f"{colour}{text}{PLAIN}"
        self._write(text.encode("utf-8", "backslashreplace"))

    def _write(self, line: bytes) -> None:
        self._out.write(line + b"\n")
        self._out.flush()
