"""Manual pages from the tables, and nsbridge.toml(5) from the commented example of a configuration: man(7) source."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from nsbridge.supervisor.cli.commands.helptext import usage
from nsbridge.supervisor.cli.commands.model import Command, Program, Value

_WIDTH = 78  # of a line of source
_ESCAPED = {"\\": "\\e", "-": "\\-", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti", "'": "\\(aq"}


class Edition:
    """Text at the foot of a page: the release, and the day it was made (2026-11-25)."""

    def __init__(self, release: str, day: str) -> None:
        self.release = release
        self.day = day


def page(program: Program, edition: Edition) -> str:
    """Return the manual page of a program: man(7) source."""
    command = program.command
    lines = [_title(program.name, program.section, edition), ".SH NAME", f"{program.name} \\- {_text(command.summary)}"]
    lines += [".SH SYNOPSIS", *_synopsis((command,))]
    lines += [".SH DESCRIPTION", *_lines(command.text), ".SH OPTIONS", *_options(command)]
    if command.commands:
        lines.append(".SH COMMANDS")
        for path in command.walk():
            if len(path) > 1 and not path[-1].commands:
                lines += _command(path)
    for heading, terms in program.notes:
        lines.append(f".SH {_quoted(heading.upper())}")
        lines += [line for term, text in terms for line in _term(_text(term), text)]
    return "\n".join([*lines, ".SH SEE ALSO", ",\n".join(_reference(name) for name in program.see_also), ""])


def configuration_page(example: str, edition: Edition) -> str:
    """Return nsbridge.toml(5): the example, whose comments explain every key."""
    intro = (
        "The configuration of nsbridged(8), in TOML. What follows is an example with every key there is; each is there "
        "with its default where it has one. nsbridged --check says whether a file is right: all that is wrong is "
        "reported together, each with the path of its key. nsbridgectl reload applies a changed file."
    )
    lines = [_title("nsbridge.toml", 5, edition), ".SH NAME", "nsbridge.toml \\- configuration of nsbridged"]
    lines += [
        ".SH DESCRIPTION",
        *_lines(intro),
        ".SH EXAMPLE",
        ".nf",
        *(_line(_text(line)) for line in example.splitlines()),
        ".fi",
    ]
    return "\n".join([*lines, ".SH SEE ALSO", f"{_reference('nsbridged(8)')},", _reference("nsbridgectl(1)"), ""])


def _title(name: str, section: int, edition: Edition) -> str:
    return f'.TH {_text(name.upper())} {section} {edition.day} "nsbridge {_text(edition.release)}" nsbridge'


def _command(path: tuple[Command, ...]) -> Iterator[str]:
    command = path[-1]
    yield f".SS {_quoted(' '.join(below.name for below in path[1:]))}"
    yield from _synopsis(path)
    yield ".PP"
    yield from _lines(command.text)
    for operand in command.operands:
        yield from _term(_text(operand.value.metavar), operand.help)
    yield from _options(command)


def _synopsis(path: tuple[Command, ...]) -> Iterator[str]:
    names = " ".join(command.name for command in path)
    yield f".B {_text(names)}"
    yield from (_text(word) for word in usage(path[-1], path)[1:])


def _options(command: Command) -> Iterator[str]:
    for option in command.options:
        yield from _term(
            ", ".join(f"\\fB{_text(flag)}\\fR" for flag in option.flags) + _metavar(option.value), option.help
        )


def _metavar(value: Value | None) -> str:
    return f" \\fI{_text(value.metavar)}\\fR" if value else ""


def _term(term: str, text: str) -> Iterator[str]:
    """Yield a term and its meaning as a sentence; a word with a fixed spelling keeps its first letter."""
    is_a_word = text.split(maxsplit=1)[0].isalpha()
    end = "" if text.endswith("?") else "."
    yield from (".TP", term, *_lines(f"{text[0].upper() if is_a_word else text[0]}{text[1:]}{end}"))


def _reference(name: str) -> str:
    title, _, section = name.rstrip(")").partition("(")
    return f".BR {_text(title)} ({section})"


def _text(text: str) -> str:
    """Return `text` with nothing in it that troff obeys, or prints as something else."""
    return "".join(_ESCAPED.get(c, c) for c in text)


def _lines(text: str) -> list[str]:
    """Return the lines of a paragraph."""
    return [_line(line) for line in textwrap.wrap(_text(text), _WIDTH, break_long_words=False, break_on_hyphens=False)]


def _line(escaped: str) -> str:
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def _quoted(text: str) -> str:
    return f'"{_text(text)}"'
