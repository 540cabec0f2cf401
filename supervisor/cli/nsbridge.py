"""The command `nsbridge`: a bridge for once, the demo, and what containers there are."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Sequence

from nsbridge.config.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, NsbridgeError, UsageError
from nsbridge.supervisor.cli.commands import parse as commandline
from nsbridge.supervisor.cli.commands.nsbridge import JOURNAL_LINES, PROGRAM
from nsbridge.supervisor.cli.commands.parse import Parsed

# A subcommand's modules are imported when it runs: `--help` must not wait for what it does not need, and a fault in
# one subcommand's imports must not take the others along.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv without the program by default); the result is the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal's encoding must not decide whether we fail
    return _flushed(_outcome(sys.argv[1:] if argv is None else argv))


def _outcome(argv: Sequence[str]) -> int:
    """Return the exit code of a command line; any error is already printed on stderr."""
    try:
        options = parse(argv)
        if options.wants:
            from nsbridge.supervisor.cli.commands import helptext  # noqa: PLC0415

            print(helptext.asked(PROGRAM, options), end="")
            return EXIT_OK
        return _COMMANDS[options.command](options)
    except NsbridgeError as error:
        for line in str(error).splitlines():
            print(f"nsbridge: {line}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has seen enough (| head)
        return EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        print(f"nsbridge: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        return EXIT_FAILED


def _flushed(code: int) -> int:
    """Return `code`, or 1 if the output cannot be written; a reader that has gone changes nothing."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush at the end
        if not isinstance(error, BrokenPipeError):
            print(f"nsbridge: cannot write the output: {error.strerror}", file=sys.stderr)
            return EXIT_FAILED
    return code


def parse(argv: Sequence[str]) -> Parsed:
    """Return the checked command line; UsageError names what is wrong with it."""
    options = commandline.parse(PROGRAM.command, list(argv))
    if options.command == "bridge" and not options.wants:
        _check_that_it_cannot_hear_itself(options)
    return options


def _bridge(options: Parsed) -> int:
    from nsbridge.supervisor.cli.oneshot import BridgeRequest, run  # noqa: PLC0415

    return run(BridgeRequest(**options.values))


def _demo(options: Parsed) -> int:
    from nsbridge.supervisor.cli.demo.scenario import run  # noqa: PLC0415

    return run(options.runtime, options.messages)


def _containers(options: Parsed) -> int:
    from nsbridge.supervisor.cli import render  # noqa: PLC0415
    from nsbridge.supervisor.containers.listing import list_containers  # noqa: PLC0415

    rows = [row for row in list_containers() if row.name.startswith(tuple(options.names) or "")]
    if options.json:
        print(json.dumps({"schema": 1, "containers": [dataclasses.asdict(row) for row in rows]}, indent=2))
        return EXIT_OK
    if not rows:
        print("no containers")
        return EXIT_OK
    cells = [["NAME", "STATE", "PID", "MNT", "IPC", "NOTE"]]
    for row in rows:
        inodes = ((row.mnt_inode, row.mnt_is_own), (row.ipc_inode, row.ipc_is_own))
        namespaces = [f"{inode}{'*' if is_own else ''}" if inode else "-" for inode, is_own in inodes]
        cells.append([row.name, row.state, str(row.pid or "-"), *namespaces, row.note])
    for line in render.table(cells):
        print(line)
    return EXIT_OK


def _journal(options: Parsed) -> int:
    from nsbridge.agents import journalreader  # noqa: PLC0415
    from nsbridge.supervisor.cli import journal  # noqa: PLC0415

    facts = journalreader.read(options.file, None if options.all else JOURNAL_LINES)
    print("\n".join([json.dumps(facts, indent=2)] if options.json else journal.lines(facts)))
    return EXIT_OK


def _check_that_it_cannot_hear_itself(options: Parsed) -> None:
    """Refuse a route that would carry the bridge's own messages round endlessly."""
    send, receive = options.send_type, options.receive_type
    if receive in (0, send) or -receive >= send:
        raise UsageError(
            f"--receive-type {receive} takes messages of --send-type {send} too, so the bridge would hear itself: "
            "let the two differ"
        )
    if os.path.normpath(options.out) == os.path.normpath(options.in_):
        raise UsageError(f"--out and --in are both {options.out}, so the bridge would hear itself: let the two differ")


_COMMANDS: dict[str, Callable[[Parsed], int]] = {
    "bridge": _bridge,
    "demo": _demo,
    "containers": _containers,
    "journal": _journal,
}

if __name__ == "__main__":
    sys.exit(main())
