"""The completion script for fish: a `complete` for each option, command and operand, with where it may stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nsbridge.supervisor.cli.commands.model import NOTHING, PATH, Command, Option, Program, Value

_HEAD = """# fish completion of {names}; made by: nsbridgectl completion fish

function __nsbridge_asked # the word all, and what the running daemon lists: names, letters
    for what in $argv
        test $what = all; and echo all; and continue
        nsbridgectl completion $what -- (commandline -opc) 2>/dev/null
    end
end

function __nsbridge_at # whether the words $argv[2..] are typed as commands, with at most $argv[1] operands behind them
    set -l typed
    set -l is_value
    for word in (commandline -opc)[2..]
        if test -n "$is_value"
            set is_value
        else if contains -- $word {valued}
            set is_value 1
        else if not string match -q -- '-?*' $word
            set -a typed $word
        end
    end
    set -l commands $argv[2..]
    set -l count (count $commands)
    test (count $typed) -ge $count; and test (count $typed) -le (math $count + $argv[1])
    and begin
        test $count -eq 0; or test "$typed[1..$count]" = "$commands"
    end
end
"""
_MANY = 1000  # operands


def script(programs: Sequence[Program]) -> str:
    """Return the whole script for these programs."""
    options = [option for program in programs for path in program.command.walk() for option in path[-1].options]
    valued = dict.fromkeys(flag for option in options if option.value for flag in option.flags)
    head = _HEAD.replace("{names}", ", ".join(program.name for program in programs))
    lines = [line for program in programs for line in _program(program)]
    return "\n".join([head.replace("{valued}", " ".join(valued)), *lines, ""])


def _program(program: Program) -> Iterator[str]:
    start = f"complete -c {program.name}"
    yield f"{start} -f"
    for path in program.command.walk():
        command, typed = path[-1], " ".join(command.name for command in path[1:])
        anywhere = f"{start} -n '{_at(_MANY, typed)}'" if typed else start
        for option in command.options:
            yield f"{anywhere} {_option(option)}"
        for below in command.commands:
            yield f"{start} -n '{_at(0, typed)}' -a {below.name} -d {_quoted(below.summary)}"
        yield from _operands(start, typed, command)


def _operands(start: str, typed: str, command: Command) -> Iterator[str]:
    for number, operand in enumerate(command.operands):
        if offered := _offered(operand.value):
            before = _MANY if operand.most > 1 else number
            yield f"{start} -n '{_at(before, typed)}' {offered}"


def _at(most: int, typed: str) -> str:
    return f"__nsbridge_at {most} {typed}".rstrip()


def _option(option: Option) -> str:
    flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
    text = f"{flags} -d {_quoted(option.help)}"
    if option.value is None:
        return text
    return f"{text} -r {_offered(option.value) or '-f'}"


def _offered(value: Value) -> str:
    if value.words:
        return f"-f -a {_quoted(' '.join(value.words))}"
    if value.completes in (NOTHING, PATH):
        return "-F" if value.completes else ""
    return f"-f -a '(__nsbridge_asked {' '.join(value.completes)})'"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
