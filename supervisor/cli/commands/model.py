"""Parts of a command line. Plain classes: dataclasses and typing cost more to load than all of a command."""

from __future__ import annotations

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ANY = 1 << 30  # operands, where there is no limit to their number


# What a shell offers for a value that is no list of words: files, the word `all` and the running daemon's names, or
# the containers of this host.
NOTHING: tuple[str, ...] = ()
PATH = ("path",)
NAMES = ("names",)  # of routes and agents
NAMES_OR_ALL = ("all", "names")
LETTERS = ("letters",)  # IDs of dead letters
CONTAINERS = ("containers",)  # of this host, by every engine
LETTERS_OR_NAMES = ("all", "names", "letters")
_OR = {NAMES_OR_ALL: "|all", LETTERS_OR_NAMES: "|NAME|all"}


class Value:
    """Value of a command line's word: an option's value, or an operand.

    `convert` raises ValueError with the reason. `words`, if there are any, are the only ones allowed.
    """

    __slots__ = ("completes", "convert", "metavar", "words")

    def __init__(
        self,
        metavar: str,
        convert: Callable[[str], object] = str,
        completes: tuple[str, ...] = NOTHING,
        words: Sequence[str] = (),
    ) -> None:
        self.metavar = metavar
        self.convert = convert
        self.completes = completes
        self.words = tuple(words)


class Option:
    """`flags` are its spellings (`-n`, `--lines`); without a `value` it is a flag and its value is True.

    `dest` names it in what parse() returns, and is made of the last flag by default.
    """

    __slots__ = ("default", "dest", "flags", "help", "value")

    def __init__(
        self, flags: str, text: str, value: Value | None = None, default: object = None, dest: str | None = None
    ) -> None:
        self.flags = tuple(flags.split())
        self.help = text
        self.value = value
        self.default = False if value is None else default
        self.dest = dest or self.flags[-1].lstrip("-").replace("-", "_")

    @property
    def synopsis(self) -> str:
        """Return `-n N`: its first spelling, with what it takes."""
        return f"{self.flags[0]} {self.value.metavar}" if self.value else self.flags[0]

    @property
    def spelled(self) -> str:
        """Return `-n, --lines N`: all of them."""
        return ", ".join(self.flags) + (f" {self.value.metavar}" if self.value else "")


class Operand:
    """Operand of a command, given at least `least` and at most `most` times; `dest` as for an option.

    The result is a list where `most` is more than one, else the value or None.
    """

    __slots__ = ("dest", "help", "least", "most", "value")

    def __init__(self, dest: str, text: str, value: Value, least: int = 1, most: int = 1) -> None:
        self.dest = dest
        self.help = text
        self.value = value
        self.least = least
        self.most = most

    @property
    def synopsis(self) -> str:
        """Return `NAME`, `[NAME]`, `NAME...`, `[NAME...]` or `NAME...|all`."""
        word = self.value.metavar + ("..." if self.most > 1 else "") + _OR.get(self.value.completes, "")
        return word if self.least else f"[{word}]"


class Command:
    """A command with its options and operands, or with commands of its own. `name` is the one word typed for it."""

    def __init__(
        self,
        name: str,
        summary: str,
        text: str = "",
        *,
        options: Sequence[Option] = (),
        operands: Sequence[Operand] = (),
        commands: Sequence[Command] = (),
    ) -> None:
        self.name = name
        self.summary = summary
        self.text = text or f"{summary[0].upper()}{summary[1:]}."
        self.options = tuple(options)
        self.operands = tuple(operands)
        self.commands = tuple(commands)

    def child(self, name: str) -> Command | None:
        """Return the command of that name below this one."""
        return next((command for command in self.commands if command.name == name), None)

    def walk(self, path: tuple[Command, ...] = ()) -> Iterator[tuple[Command, ...]]:
        """Yield this command and all below it, each with those it stands behind: (nsbridgectl, dead, list)."""
        path = (*path, self)
        yield path
        for command in self.commands:
            yield from command.walk(path)


class Program:
    """Program that a person can start: its command line, and what else its manual page holds, in `section` of the
    manual.
    """

    def __init__(
        self,
        command: Command,
        section: int,
        notes: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (),
        see_also: Sequence[str] = (),
    ) -> None:
        self.command = command
        self.section = section
        self.notes = tuple(notes)  # (heading, (term, what it means)…)
        self.see_also = tuple(see_also)

    @property
    def name(self) -> str:
        """Return the word that starts it."""
        return self.command.name


def about(program: str) -> tuple[Option, Option]:
    """Return the two options that every program has, and each of its commands."""
    return Option("-h --help", "this text"), Option("--version", f"the version of {program}")


EXIT_CODES = (
    ("0", "all right"),
    ("1", "failed"),
    ("2", "usage or configuration"),
    ("3", "status: something that should run does not, or has been blocked for longer than health.max_blocked"),
    ("4", "the daemon cannot be reached"),
    ("5", "no such route or agent"),
    ("77", "not permitted"),
)
