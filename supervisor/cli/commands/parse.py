"""argv → what it means, by a table of model.py. By hand: argparse costs as much to load as all the rest together.

Options may stand anywhere before a `--`, also before the command that they belong to; values follow after a blank, a
`=` or, behind a single letter, directly. `--help` and `--version` count as soon as they are met.
"""

from __future__ import annotations

from nsbridge.config.errors import UsageError

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nsbridge.supervisor.cli.commands.model import Command, Option, Value

_ABOUT = ("help", "version")  # options that are asked instead of all else


class Parsed:
    """A command line: the commands from the program down to the one to be run, and each option and operand by `dest`.

    `wants` is `help` or `version` where that was asked for instead; the rest is then of no account.
    """

    __slots__ = ("path", "values", "wants")

    def __init__(self, path: tuple[Command, ...], values: dict[str, Any], wants: str = "") -> None:
        self.path = path
        self.values = values
        self.wants = wants

    @property
    def command(self) -> str:
        """Return the command as it is typed behind the program's name: `dead list`; empty for the program itself."""
        return " ".join(command.name for command in self.path[1:])

    def __getattr__(self, dest: str) -> Any:
        """Return the value of an option or operand that this command has."""
        try:
            return self.values[dest]
        except KeyError:
            raise AttributeError(dest) from None


def parse(program: Command, argv: list[str]) -> Parsed:
    """Return the meaning of `argv` (without the program's name). Raise UsageError with what is wrong, in one line."""
    path: tuple[Command, ...] = (program,)
    words, given = list[str](), list[tuple[str, object]]()
    rest, only_words = list(argv), False
    while rest:
        word = rest.pop(0)
        if only_words or not word.startswith("-") or word == "-":
            if path[-1].commands:
                path = (*path, _below(path, word))
            else:
                words.append(word)
        elif word == "--":
            only_words = True
        else:
            flag, option, value = _option(path, word, rest)
            if option.dest in _ABOUT:
                return Parsed(path, {}, option.dest)
            given.append((flag, value))
    if path[-1].commands:
        which = f"{path[-1].name} needs" if len(path) > 1 else "which command?"
        raise UsageError(f"{which} one of {_names(path[-1])}; --help says more")
    return Parsed(path, _options(path, given) | _operands(path, words))


def _options(path: tuple[Command, ...], given: list[tuple[str, object]]) -> dict[str, object]:
    own = _own(path)
    values = {option.dest: option.default for option in own if option.dest not in _ABOUT}
    for flag, value in given:
        option = next((option for option in own if flag in option.flags), None)
        if option is None:
            raise UsageError(f"{_typed(path)} does not take {flag}")
        values[option.dest] = value
    return values


def _own(path: tuple[Command, ...]) -> list[Option]:
    return [option for command in path for option in command.options]


def _option(path: tuple[Command, ...], word: str, rest: list[str]) -> tuple[str, Option, object]:
    """Return the flag in `word`, its option, and its value: after the `=`, behind its letter, or from `rest`."""
    flag, equals, value = word.partition("=")
    if not word.startswith("--"):
        flag, equals, value = word[:2], "", word[2:]
    option = next((option for option in _known(path) if flag in option.flags), None)
    if option is None or (option.value is None and (equals or value)):
        raise UsageError(f"no such option: {word}; --help lists them")
    if option.value is None:
        return flag, option, True
    if not (equals or value):
        if not rest:
            raise UsageError(f"{flag} needs a value: {option.value.metavar}")
        value = rest.pop(0)
    return flag, option, _converted(flag, option.value, value)


def _known(path: tuple[Command, ...]) -> Iterator[Option]:
    """Yield the options of the commands typed so far, then all others, which may belong to a word that follows."""
    yield from _own(path)
    for any_path in path[0].walk():
        yield from any_path[-1].options


def _converted(what: str, value: Value, text: str) -> object:
    if value.words and text not in value.words:
        raise UsageError(f"{what} {text!r}: it must be one of {', '.join(value.words)}")
    try:
        return value.convert(text)
    except ValueError as error:
        raise UsageError(f"{what} {text!r}: {error}") from None


def _below(path: tuple[Command, ...], word: str) -> Command:
    command = path[-1].child(word)
    if command is None:
        typed = " ".join([*(above.name for above in path[1:]), word])
        raise UsageError(f"no such command: {typed}; it must be one of {_names(path[-1])}")
    return command


def _operands(path: tuple[Command, ...], words: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    left = list(words)
    for operand in path[-1].operands:
        taken, left = left[: operand.most], left[operand.most :]
        if len(taken) < operand.least:
            raise UsageError(f"{_typed(path)} needs {operand.value.metavar}, {operand.help}")
        found = [_converted(operand.value.metavar, operand.value, word) for word in taken]
        values[operand.dest] = found if operand.most > 1 else (found[0] if found else None)
    if left:
        which = f"{_typed(path)}: " if len(path) > 1 else ""
        raise UsageError(f"{which}too many arguments: {' '.join(left)}; --help says what it takes")
    return values


def _typed(path: tuple[Command, ...]) -> str:
    return " ".join(command.name for command in path[1:]) or path[0].name


def _names(command: Command) -> str:
    return ", ".join(child.name for child in command.commands)
