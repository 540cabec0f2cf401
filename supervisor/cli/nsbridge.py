"""The command `nsbridge`: a bridge for once, the demo, and what containers there are."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence

from nsbridge.config.errors import EXIT_OK, UsageError
from nsbridge.supervisor.cli import program
from nsbridge.supervisor.cli.commands import parse as commandline
from nsbridge.supervisor.cli.commands.nsbridge import CONFIG_DIRECTORY, JOURNAL_LINES, PROGRAM
from nsbridge.supervisor.cli.commands.parse import Parsed

# A subcommand's modules are imported when it runs: `--help` must not wait for what it does not need, and a fault in
# one subcommand's imports must not take the others along.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv without the program by default); the result is the exit code."""
    return program.run("nsbridge", argv, _run)


def _run(argv: list[str]) -> int:
    options = parse(argv)
    return program.show_help(PROGRAM, options) if options.wants else _COMMANDS[options.command](options)


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
    from nsbridge.supervisor.cli.demo.scenario import Demo, run  # noqa: PLC0415

    if not options.two_hosts:
        return run(options.runtime, options.messages, Demo)
    from nsbridge.supervisor.cli.demo.twohosts import TwoHosts  # noqa: PLC0415

    return run(options.runtime, options.messages, TwoHosts)


def _containers(options: Parsed) -> int:
    from nsbridge.supervisor.cli import render  # noqa: PLC0415
    from nsbridge.supervisor.containers.listing import list_containers  # noqa: PLC0415

    wanted = tuple(options.names) or ""
    rows = [row for row in list_containers() if any(name.startswith(wanted) for name in row.names)]
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
        also = f"also {', '.join(row.other_names)}" if row.other_names else ""
        note = "; ".join(filter(None, (row.note, also)))
        cells.append([row.name, row.state, str(row.pid or "-"), *namespaces, note])
    for line in render.table(cells):
        print(line)
    return EXIT_OK


def _init(options: Parsed) -> int:
    from nsbridge.supervisor.cli import init  # noqa: PLC0415

    print("\n".join(init.run(options.dir or CONFIG_DIRECTORY)))
    return EXIT_OK


def _journal(options: Parsed) -> int:
    from nsbridge.agents import journalreader  # noqa: PLC0415
    from nsbridge.supervisor.cli import journal  # noqa: PLC0415

    facts = journalreader.read(options.file, None if options.all else JOURNAL_LINES)
    print("\n".join([json.dumps(facts, indent=2)] if options.json else journal.lines(facts)))
    return EXIT_OK


def _web(options: Parsed) -> int:
    from nsbridge.supervisor.cli.client import DEFAULT_PATH  # noqa: PLC0415

    command = program.module_of_extra("web", "web", "nsbridge.supervisor.cli.web.command")
    code: int = command.run(options, options.socket or os.environ.get("NSBRIDGE_CONTROL") or DEFAULT_PATH)
    return code


def _check_that_it_cannot_hear_itself(options: Parsed) -> None:
    """Refuse a route that would carry the bridge's own messages round endlessly."""
    send, receive = options.send_type, options.receive_type
    if receive in (0, send) or -receive >= send:
        raise UsageError(
            f"--receive-type {receive} takes messages of --send-type {send} too, so the bridge would take "
            "its own messages: let the two differ"
        )
    if os.path.normpath(options.out) == os.path.normpath(options.in_):
        raise UsageError(
            f"--out and --in are both {options.out}, so the bridge would take its own messages: let the two differ"
        )


_COMMANDS: dict[str, Callable[[Parsed], int]] = {
    "bridge": _bridge,
    "demo": _demo,
    "containers": _containers,
    "init": _init,
    "journal": _journal,
    "web": _web,
}

if __name__ == "__main__":
    sys.exit(main())
