"""Shell completion: one table, three shells' scripts; and what such a script asks of the daemon.

A script contains commands and options itself; only for names of routes, agents and containers, and for IDs of dead
letters, it runs nsbridgectl. What that prints goes into a command line, so nothing but what a name may consist of is
printed.
"""

from __future__ import annotations

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.cli.commands import bash, fish, nsbridge, nsbridgectl, nsbridged, zsh
from nsbridge.supervisor.cli.commands.model import Option

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from typing import Any

PROGRAMS = (nsbridgectl.PROGRAM, nsbridge.PROGRAM, nsbridged.PROGRAM)
SHELLS = {"bash": bash.script, "zsh": zsh.script, "fish": fish.script}
TIMEOUT = 0.5  # seconds; the user has pressed TAB and waits
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/")


def answer(what: str, words: list[str]) -> str:
    """Return the output of `nsbridgectl completion WHAT WORD...`."""
    if what in SHELLS:
        return SHELLS[what](PROGRAMS)
    try:
        found = _asked(what, words)
    except (NsbridgeError, OSError, LookupError, TypeError):
        return ""  # a message would disturb the user, who is typing
    return "".join(f"{word}\n" for word in found if word and _PLAIN.issuperset(word))


def _asked(what: str, words: list[str]) -> list[str]:
    if what == "containers":
        return _containers()
    from nsbridge.supervisor.cli.client import ControlClient  # noqa: PLC0415

    with ControlClient(_socket_path(words), TIMEOUT) as client:
        if what == "letters":
            return [letter["id"] for letter in client.call("dead_list")["letters"]]
        return _names(client.call("status"))


def _names(status: dict[str, Any]) -> list[str]:
    names = []
    for route in status["routes"]:
        names += [route["name"], *(agent["name"] for agent in route["agents"])]
    return names


def _containers() -> list[str]:
    from nsbridge.supervisor.containers.listing import list_containers  # noqa: PLC0415

    return [name for row in list_containers() for name in row.names]


def _socket_path(words: list[str]) -> str:
    """Return the socket that a half-typed command line means. Raise NsbridgeError if it cannot be known."""
    from nsbridge.supervisor.cli import nsbridgectl as ctl  # noqa: PLC0415  (it imports us)

    chosen = {option.dest: _last(option, words) for option in nsbridgectl.PROGRAM.command.options if option.value}
    return ctl.socket_path(chosen["socket"], chosen["config"])


def _last(option: Option, words: list[str]) -> str | None:
    """Return the value of `option` in `words`; words that are half-typed or wrong do not matter."""
    found = None
    for number, word in enumerate(words):
        for flag in option.flags:
            if word == flag and number + 1 < len(words):
                found = words[number + 1] or None
            elif word.startswith(f"{flag}=") or (word.startswith(flag) and not flag.startswith("--")):
                found = word[len(flag) :].lstrip("=") or found
    return found
