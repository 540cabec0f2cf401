"""The frame of every command's main function: its streams, its errors, its exit code.

nsbridgectl must start fast, so this module imports only what every command has loaded already.
"""

from __future__ import annotations

import importlib
import os
import sys

from nsbridge.config.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, NsbridgeError
from nsbridge.config.text import escape

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from nsbridge.supervisor.cli.commands.model import Program
    from nsbridge.supervisor.cli.commands.parse import Parsed


def run(name: str, argv: Sequence[str] | None, command: Callable[[list[str]], int]) -> int:
    """Run `command` with `argv` (sys.argv without the program by default); return its exit code.

    An error of ours becomes one line on stderr for each problem, with the name of the program before it.
    """
    _prepare_streams()
    try:
        code = command(list(sys.argv[1:] if argv is None else argv))
    except NsbridgeError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"{name}: {escape(line)}\n")
        code = error.exit_code
    except BrokenPipeError:  # the reader of our output has seen enough (| head)
        code = EXIT_OK
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.stderr.write(f"{name}: {escape(f'{error.strerror}{where}')}\n")
        code = EXIT_FAILED
    return _flushed(name, code)


def show_help(program: Program, options: Parsed) -> int:
    """Print the help or the version that the command line asks for; return the exit code."""
    from nsbridge.supervisor.cli.commands import helptext  # noqa: PLC0415  (slow to load, and not in a daemon's memory)

    sys.stdout.write(helptext.asked(program, options))
    return EXIT_OK


def module_of_extra(command: str, extra: str, name: str) -> Any:
    """Import a module that needs the packages of an extra. NsbridgeError where these are not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "nsbridge":
            raise
        raise NsbridgeError(f"{command}: {error.name} is not installed: pip install 'nsbridge[{extra}]'") from None


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: output is discarded
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # tests have streams without
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # a terminal's encoding must not decide whether we fail


def _flushed(name: str, code: int) -> int:
    """Return `code`, or 1 if the output cannot be written; a reader that has gone changes nothing."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush at the end
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"{name}: cannot write the output: {error.strerror}\n")
            return EXIT_FAILED
    return code
