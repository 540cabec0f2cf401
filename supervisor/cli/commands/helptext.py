"""`--help`: a command's table as text for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from importlib.metadata import version

from nsbridge.supervisor.cli.commands.model import Command, Program
from nsbridge.supervisor.cli.commands.parse import Parsed

WIDTH = 79
_TERM_WIDTH = 27  # of the left column; where something is longer, each has a line of its own
_UNBROKEN = "\N{NO-BREAK SPACE}"


def asked(program: Program, parsed: Parsed) -> str:
    """Return the answer to a command line that asks for help or the version."""
    if parsed.wants == "version":
        return f"{program.name} {version('nsbridge')}\n"
    return show(program, parsed.path)


def show(program: Program, path: tuple[Command, ...]) -> str:
    """Return the help of the last command of `path`, which begins with the program's own."""
    command = path[-1]
    parts = [synopsis(path), _filled(command.text)]
    if command.commands:
        parts.append(_list("commands", [(" ".join(usage(below, ())), below.summary) for below in command.commands]))
    parts.append(_list("operands", [(operand.value.metavar, operand.help) for operand in command.operands]))
    parts.append(_list("options", [(option.spelled, option.help) for option in command.options]))
    if len(path) == 1:
        parts += [_list(heading, list(terms)) for heading, terms in program.notes]
        parts.append(f"see also: {', '.join(program.see_also)}")
    else:
        inherited = [option.synopsis for above in path[:-1] for option in above.options]
        parts.append(_filled(f"Also: {', '.join(inherited)} ({path[0].name} --help)."))
    return "\n\n".join(part for part in parts if part) + "\n"


def synopsis(path: tuple[Command, ...]) -> str:
    """Return `usage: …`, with its further lines below the first one's words."""
    start = "usage: " + " ".join(command.name for command in path)
    words = [word.replace(" ", _UNBROKEN) for word in [start, *usage(path[-1], path)[1:]]]
    indent = " " * (len(start) + 1)
    return _filled(" ".join(words), subsequent_indent=indent).replace(_UNBROKEN, " ")


def usage(command: Command, path: tuple[Command, ...]) -> list[str]:
    """Return the command's name and what follows it, in words that stay together. `path` is empty for one line of a
    list.
    """
    shown = [option for option in command.options if path and option.dest not in ("help", "version")]
    words = [command.name, *(f"[{option.synopsis}]" for option in shown)]
    words += [operand.synopsis for operand in command.operands]
    if command.commands:
        words.append("|".join(below.name for below in command.commands) if not path else "COMMAND")
    return words


def _filled(text: str, initial_indent: str = "", subsequent_indent: str = "") -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=initial_indent,
        subsequent_indent=subsequent_indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _list(heading: str, terms: list[tuple[str, str]]) -> str:
    if not terms:
        return ""
    width = max(len(term) for term, _ in terms)
    lines = [f"{heading}:"]
    for term, text in terms:
        if width > _TERM_WIDTH:
            lines += [f"  {term}", _filled(text, " " * 8, " " * 8)]
        else:
            lines.append(_filled(text, f"  {term:{width}}  ", " " * (width + 4)))
    return "\n".join(lines)
