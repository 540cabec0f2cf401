"""Takes the picture of README: `nsbridge demo` at a terminal, as an SVG that plays the lines as they came.

    python -m tests.system.demo_picture docs/demo.svg

Lines to come are dim, so that a viewer without animations, or a person who wants none, can read all at once.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

WORDS = ("hello", "grüß dich, 世界")
SHOWN = f"$ ./run demo hello '{WORDS[1]}'"
WIDTH, HEIGHT = 7.8, 19  # of a character and of a line, in pixels
LEFT, TOP = 16, 46
PACE = 0.12  # seconds at least between two lines, so that an eye can follow
STYLES = (  # the first that matches a line
    (r"\$ ", "p"),
    (r"# killing", "k"),
    (r"#   echo:server is back", "k"),
    (r"#", "c"),
    (r"Recv", "r"),
    (r"", "t"),
)
CSS = """
text { font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; fill: #d8dee9 }
.p { fill: #ffffff; font-weight: bold } .c { fill: #8b98ab }
.k { fill: #ebb35c } .r { fill: #7fd18b; font-weight: bold }
.g { fill: #7fd18b }
@keyframes come { from { opacity: 0.35 } to { opacity: 1 } }
.line { animation: come 1ms backwards }
@media (prefers-reduced-motion: reduce) { .line { animation: none } }
"""


def played() -> Iterator[tuple[float, str]]:
    """Run the demo; yield (seconds since the start, line) of what it prints."""
    program = Path(sys.executable).with_name("nsbridge")
    begun, last = time.monotonic(), 0.0
    yield 0.0, SHOWN
    with subprocess.Popen([program, "demo", *WORDS], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            last = max(time.monotonic() - begun, last + PACE)
            yield last, line.decode().rstrip("\n")
    assert demo.returncode == 0


def drawn(lines: Sequence[tuple[float, str]]) -> str:
    """Return the SVG of lines with their times."""
    width = round(2 * LEFT + WIDTH * max(len(line) for _at, line in lines))
    height = TOP + HEIGHT * len(lines)
    dots = "".join(
        f'<circle cx="{22 + 18 * at}" cy="18" r="6" fill="{colour}"/>'
        for at, colour in enumerate(("#ec6a5e", "#f4bf4f", "#61c554"))
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        "<title>nsbridge demo: messages between two containers, one agent killed on the way, none lost</title>\n"
        f'<style>{CSS}</style>\n<rect width="100%" height="100%" rx="8" fill="#1c222b"/>{dots}\n'
    )
    body = "\n".join(_line(at, seconds, line) for at, (seconds, line) in enumerate(lines))
    return f"{head}{body}\n</svg>\n"


def _line(at: int, seconds: float, line: str) -> str:
    style = next(style for pattern, style in STYLES if re.match(pattern, line))
    text = escape(line).replace(" RUNNING ", ' <tspan class="g">RUNNING</tspan> ')
    place = f'x="{LEFT}" y="{TOP + HEIGHT * at}"'
    return (
        f'<text class="line {style}" {place} xml:space="preserve" style="animation-delay:{seconds:.2f}s">{text}</text>'
    )


def main() -> int:
    """Write the picture to the path that is given."""
    (path,) = map(Path, sys.argv[1:])
    path.write_text(drawn(list(played())), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
