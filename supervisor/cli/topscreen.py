"""`nsbridgectl top`: asks the daemon, and shows what topview.py makes of the answers, on a terminal or once.

The terminal is put back as it was however it ends: by q, Ctrl-C, a signal, Ctrl-Z, an error. A frame is written over
the one before, in one write, so that nothing flickers.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from typing import Any

from nsbridge.config.errors import EXIT_OK
from nsbridge.supervisor.cli.client import ControlClient
from nsbridge.supervisor.cli.commands.parse import Parsed
from nsbridge.supervisor.cli.top import Sample, TopAnswer, look, ordered
from nsbridge.supervisor.cli.topview import View, summary, table

_ENTER = (
    "\x1b[?1049h\x1b[?25l\x1b[?7l"  # alternate screen, no cursor, no line breaks of its own (xterm's, of all since)
)
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_REVERSE, _PLAIN = "\x1b[7m", "\x1b[0m"
_ESCAPES = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b[H": "home",
    b"\x1bOH": "home",
    b"\x1b[1~": "home",
}
_UNLIMITED = 1000  # columns, where their number is unknown
_PAUSE = 0.1  # seconds between two calls where some memory is not known yet
_SOON = 0.3  # seconds: the shortest time over which rates say something
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(client: ControlClient, options: Parsed) -> int:
    """Carry the command out; returns its exit code. Raises NsbridgeError."""
    names = options.names
    if options.once or options.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        _print(_once(client, names, options.interval), options)
        return EXIT_OK
    answer = _ask(client, names)  # an error belongs on the screen that was there before
    screen = _Screen()
    try:
        screen.open()
        _watch(client, options, answer, screen)
    except KeyboardInterrupt:  # a way to end it
        pass
    finally:
        screen.close()
    return EXIT_OK


def _ask(client: ControlClient, names: list[str]) -> TopAnswer:
    answer: TopAnswer = client.call("top", {"names": names})
    return answer


def _once(client: ControlClient, names: list[str], interval: float) -> Sample:
    """Measure one interval. The daemon measures the memory of some agents at each call, so it is called again."""
    before = latest = _ask(client, names)
    end = time.monotonic() + interval
    while (left := end - time.monotonic()) > 0:
        is_partial = any(process["own"] is None for process in latest["processes"].values())
        time.sleep(min(left, _PAUSE) if is_partial else left)
        latest = _ask(client, names)
    return look(before, latest)


def _print(found: Sample, options: Parsed) -> None:
    rows = ordered(found.rows, options.sort)
    if options.json:
        result = {"schema": 1, "interval_s": round(found.seconds, 3), "agents": [row.item() for row in rows]}
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return
    width = shutil.get_terminal_size((_UNLIMITED, 0)).columns if sys.stdout.isatty() else _UNLIMITED
    heading, lines = table(rows, width)
    sys.stdout.write("".join(f"{line}\n" for line in [*summary(found), heading, *lines]))


def _watch(client: ControlClient, options: Parsed, answer: TopAnswer, screen: _Screen) -> None:
    """Show it until the user ends it."""
    view = View(options.sort)
    view.look = look(None, answer)
    asked = time.monotonic()
    due = asked + min(_SOON, options.interval)
    while True:
        screen.draw(*view.frame(*screen.size()))
        for key in screen.keys(due - time.monotonic()):
            if key in ("q", "Q", "end"):
                return
            if key == " ":
                due = min(due, asked + _SOON)
            view.press(key)
        if time.monotonic() >= due:
            before, answer = answer, _ask(client, options.names)
            view.look = look(before, answer)
            asked = time.monotonic()
            due = asked + options.interval


class _Screen:
    """The terminal, from open() to close(), which does no harm where open() was not finished."""

    def __init__(self) -> None:
        self._stdin, self._stdout = sys.stdin.fileno(), sys.stdout.fileno()
        self._settings: list[Any] = termios.tcgetattr(self._stdin)
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def open(self) -> None:
        """Take the terminal over."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGWINCH, lambda _number, _frame: None)  # it wakes keys(), and the next frame fits
        signal.signal(signal.SIGTSTP, self._pause)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)
        self._take()

    def close(self) -> None:
        """Give it back as it was."""
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        try:
            self._give_back()
        except (OSError, termios.error):  # the user has hung up
            pass
        signal.set_wakeup_fd(-1)
        os.close(self._woken)
        os.close(self._wake)

    def size(self) -> tuple[int, int]:
        """Return the usable (columns, rows): the last column is not, because an erase behind it would take it along."""
        columns, rows = os.get_terminal_size(self._stdout)
        return (columns or 80) - 1, rows or 24

    def draw(self, lines: list[str], heading: int) -> None:
        """Show these lines and nothing else, line number `heading` reversed."""
        shown = [f"{_REVERSE}{line}{_PLAIN}" if number == heading else line for number, line in enumerate(lines)]
        self._write(_HOME + f"{_REST_OF_LINE}\r\n".join(shown) + _REST_OF_LINE + _REST_OF_SCREEN)

    def keys(self, limit: float) -> list[str]:
        """Return the keys pressed within `limit` seconds; none if something else needs attention first."""
        ready, _, _ = select.select([self._stdin, self._woken], [], [], max(0.0, limit))
        if self._woken in ready:
            os.read(self._woken, 4096)
        return _keys(os.read(self._stdin, 4096)) if self._stdin in ready else []

    def _take(self) -> None:
        tty.setcbreak(self._stdin, termios.TCSADRAIN)
        self._write(_ENTER)

    def _give_back(self) -> None:
        self._write(_LEAVE)
        termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._settings)

    def _pause(self, _number: int, _frame: object) -> None:
        """Ctrl-Z: the shell gets its terminal as it left it, and we take it again when we are continued."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()

    def _write(self, text: str) -> None:
        left = text.encode(sys.stdout.encoding, "backslashreplace")
        while left:
            left = left[os.write(self._stdout, left) :]


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)  # as shells have it


def _keys(data: bytes) -> list[str]:
    """Return the keys in what a terminal sent; `end` if it sends no more. Unknown ones are left out."""
    if not data:
        return ["end"]
    found = []
    while data:
        escape = next((escape for escape in _ESCAPES if data.startswith(escape)), b"")
        if escape:
            found.append(_ESCAPES[escape])
        elif data.startswith(b"\x1b"):
            break
        else:
            found.append(chr(data[0]))
        data = data[len(escape) or 1 :]
    return found
