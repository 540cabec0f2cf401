"""Manual pages from the tables, and nsbridge.toml(5) from the documentation of the configuration: man(7) source."""

from __future__ import annotations

from collections.abc import Iterator

from nsbridge.supervisor.cli.commands import reference, roff
from nsbridge.supervisor.cli.commands.helptext import usage
from nsbridge.supervisor.cli.commands.model import Command, Program, Value


class Edition:
    """Text at the foot of a page: the release, and the day it was made (2026-11-25)."""

    def __init__(self, release: str, day: str) -> None:
        self.release = release
        self.day = day


def page(program: Program, edition: Edition) -> str:
    """Return the manual page of a program: man(7) source."""
    command = program.command
    lines = [
        _title(program.name, program.section, edition),
        ".SH NAME",
        f"{program.name} \\- {roff.text(command.summary)}",
    ]
    lines += [".SH SYNOPSIS", *_synopsis((command,))]
    lines += [".SH DESCRIPTION", *roff.lines(command.text), ".SH OPTIONS", *_options(command)]
    if command.commands:
        lines.append(".SH COMMANDS")
        for path in command.walk():
            if len(path) > 1 and not path[-1].commands:
                lines += _command(path)
    for heading, terms in program.notes:
        lines.append(f".SH {roff.quoted(heading.upper())}")
        lines += [line for term, text in terms for line in _term(roff.text(term), text)]
    return "\n".join([*lines, ".SH SEE ALSO", ",\n".join(_reference(name) for name in program.see_also), ""])


def configuration_page(explained: str, example: str, edition: Edition) -> str:
    """Return nsbridge.toml(5): docs/configuration.md, and the example, whose comments explain every key."""
    intro = (
        "The configuration of nsbridged(8), in TOML: what each key means, then an example with every key there is. "
        "nsbridge init writes one to start from; nsbridged --check says whether a file is right; nsbridgectl reload "
        "applies a changed file. Documents that are named here (delivery.md) are in docs/ of the source."
    )
    lines = [_title("nsbridge.toml", 5, edition), ".SH NAME", "nsbridge.toml \\- configuration of nsbridged"]
    lines += [
        ".SH DESCRIPTION",
        *roff.lines(intro),
        ".PP",
        *reference.sections(explained),
        ".SH EXAMPLE",
        ".nf",
        *(roff.line(roff.text(line)) for line in example.splitlines()),
        ".fi",
    ]
    return "\n".join([*lines, ".SH SEE ALSO", f"{_reference('nsbridged(8)')},", _reference("nsbridgectl(1)"), ""])


def _title(name: str, section: int, edition: Edition) -> str:
    return f'.TH {roff.text(name.upper())} {section} {edition.day} "nsbridge {roff.text(edition.release)}" nsbridge'


def _command(path: tuple[Command, ...]) -> Iterator[str]:
    command = path[-1]
    yield f".SS {roff.quoted(' '.join(below.name for below in path[1:]))}"
    yield from _synopsis(path)
    yield ".PP"
    yield from roff.lines(command.text)
    for operand in command.operands:
        yield from _term(roff.text(operand.value.metavar), operand.help)
    yield from _options(command)


def _synopsis(path: tuple[Command, ...]) -> Iterator[str]:
    names = " ".join(command.name for command in path)
    yield f".B {roff.text(names)}"
    yield from (roff.text(word) for word in usage(path[-1], path)[1:])


def _options(command: Command) -> Iterator[str]:
    for option in command.options:
        yield from _term(
            ", ".join(f"\\fB{roff.text(flag)}\\fR" for flag in option.flags) + _metavar(option.value), option.help
        )


def _metavar(value: Value | None) -> str:
    return f" \\fI{roff.text(value.metavar)}\\fR" if value else ""


def _term(term: str, text: str) -> Iterator[str]:
    """Yield a term and its meaning as a sentence; a word with a fixed spelling keeps its first letter."""
    is_a_word = text.split(maxsplit=1)[0].isalpha()
    end = "" if text.endswith("?") else "."
    yield from (".TP", term, *roff.lines(f"{text[0].upper() if is_a_word else text[0]}{text[1:]}{end}"))


def _reference(name: str) -> str:
    title, _, section = name.rstrip(")").partition("(")
    return f".BR {roff.text(title)} ({section})"
