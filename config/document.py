"""From a file to TOML's own tables: everything that can be wrong before a key has a meaning.

tomllib stops at the first error. A table that is declared twice is the one error after which the rest can still be
read: the second header is set aside under a name of its own, so that all other problems are reported with it.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from nsbridge.config import trusted, unclosed
from nsbridge.config.problems import KeyPath, Problem, dotted, quoted

_WHERE = re.compile(
    r"(?P<what>.*) \(at (?P<where>line (?P<line>\d+), column (?P<column>\d+)|end of document)\)", re.DOTALL
)
_TWICE = re.compile(r"Cannot declare (?P<path>\(.*\)) twice", re.DOTALL)
_BARE_OCTAL = re.compile(r"=\s*0[0-7]+")
_MOST_SET_ASIDE = 50  # each costs one more reading of the text
_ASIDE = "\N{NO-BREAK SPACE}set aside"  # no person types that as a key

_PLACE = "/etc/nsbridge"  # where only root can change a configuration
_LONGEST = 16 << 20  # bytes; a route has about 500

Table = dict[str, object]


def read_text(path: str, *, by_root: bool = False) -> tuple[str, list[Problem]]:
    """Return the text of the file at `path`, or the problems that prevent reading it.

    With `by_root`, refuse a file that users other than root can change (trusted.py).
    """
    try:
        with open(path, "rb", opener=trusted.open_file if by_root else None) as file:
            raw = file.read(_LONGEST + 1)
    except trusted.UntrustedError as error:
        return "", [Problem((), str(error), f"or copy it: install -D -m 644 {path} {_PLACE}/{Path(path).name}")]
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or no regular file
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return "", [Problem((), f"cannot be read: {reason}", "name a file that is there and readable (-c FILE)")]
    if len(raw) > _LONGEST:
        return "", [Problem((), f"has more than {_LONGEST} bytes", "name a configuration file (-c FILE)")]
    try:
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"line {line}: is not UTF-8, got the byte {raw[error.start]:#04x}"
        return "", [Problem((), what, "save the file as UTF-8")]


def read_tables(text: str) -> tuple[Table | None, list[Problem], set[KeyPath]]:
    """Return the document's tables (None if it cannot be read on), its problems, and the tables declared twice."""
    problems: list[Problem] = []
    twice: set[KeyPath] = set()
    lines = text.replace("\r\n", "\n").split("\n")
    while True:
        try:
            tables: Table = tomllib.loads("\n".join(lines))
        except tomllib.TOMLDecodeError as error:
            path = _set_aside(str(error), lines, len(problems))
            if path is None:
                return None, [*problems, _syntax_error(str(error), lines)], twice
            problems.append(_declared_twice(str(error), path))
            twice.add(path)
        except RecursionError:
            return None, [*problems, Problem((), "is nested too deeply", "no key here needs more than a few")], twice
        except ValueError:  # int() refuses thousands of digits, and tomllib lets that through
            return None, [*problems, Problem((), "has a number that is too long", "no key here needs one")], twice
        else:
            return {name: value for name, value in tables.items() if not name.startswith(_ASIDE)}, problems, twice


def _set_aside(message: str, lines: list[str], already: int) -> KeyPath | None:
    """Rename the header that tomllib names in its error; return None for any other error, or after too many of them.

    Only headers like `[a.b]` cause that error, and a header has its line for itself.
    """
    parts = _WHERE.fullmatch(message)
    twice = _TWICE.fullmatch(parts["what"]) if parts else None
    if parts is None or twice is None or parts["line"] is None or already >= _MOST_SET_ASIDE:
        return None
    path = ast.literal_eval(twice["path"])  # tomllib shows the names as a tuple
    lines[int(parts["line"]) - 1] = f'["{_ASIDE} {already}"]'
    return tuple(path)


def _declared_twice(message: str, path: KeyPath) -> Problem:
    parts = _WHERE.fullmatch(message)
    where = parts["where"] if parts else "somewhere"
    fix = "give one of the two another name, or join them"
    return Problem(path, f"is declared a second time at {where}", fix)


def _syntax_error(message: str, lines: list[str]) -> Problem:
    parts = _WHERE.fullmatch(message)
    if parts is None:
        return Problem((), f"is not TOML: {message}", "see https://toml.io for how it is written")
    what = parts["what"][:1].lower() + parts["what"][1:]
    if (problem := _unclosed(parts, lines)) is not None:
        return problem
    if parts["line"] is None:
        return Problem((), f"{parts['where']}: is not TOML: {what}", "something that was opened is not closed")
    line = lines[int(parts["line"]) - 1].strip()
    twice = _TWICE.fullmatch(parts["what"])
    if twice is not None:
        path = dotted(tuple(ast.literal_eval(twice["path"])))
        return Problem((), f"{parts['where']}: {path} is declared twice", "give one of the two another name")
    return Problem((), f"{parts['where']}: is not TOML: {what}, in {quoted(line)}", _fix(what, line))


def _unclosed(parts: re.Match[str], lines: list[str]) -> Problem | None:
    """Return the problem at the line that opened what is not closed; None if the error is a different one."""
    at_line, column = (int(parts[key] or 0) for key in ("line", "column"))
    text = "\n".join(lines)
    end = sum(len(line) + 1 for line in lines[: at_line - 1]) + column - 1 if at_line else len(text)
    found = unclosed.innermost(text, end)
    if found is None or (at_line == found.line and text[end : end + 1] not in ("", "\n", "#")):
        return None
    line = quoted(lines[found.line - 1].strip())
    noticed = "" if at_line == found.line else f" (noticed at {parts['where']})"
    fix = f"close it with {found.closing}"
    if found.name == "an inline table":
        fix += " on the same line: an inline table cannot go over several lines, a table of its own can"
    return Problem(
        (), f"line {found.line}: is not TOML: opens {found.name} and does not close it, in {line}{noticed}", fix
    )


def _fix(what: str, line: str) -> str:
    if "overwrite" in what or "duplicate" in what:
        return "a key stands once in its table: take one of the two out, or give it another name"
    if _BARE_OCTAL.search(line):
        return 'TOML has no octal numbers like 0660: put a mode in quotes, like "0660"'
    return "write KEY = VALUE, strings in quotes, tables as [route.NAME]; see https://toml.io"
