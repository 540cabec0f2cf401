"""The command `nsbridge`: a bridge for once, the demo, and what containers there are."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NoReturn

from nsbridge.config.errors import EXIT_FAILED, EXIT_OK, NsbridgeError, UsageError

# A subcommand's modules are imported when it runs: `--help` must not wait for what it does not need, and a fault in
# one subcommand's imports must not take the others along.

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
I64 = (-(1 << 63), (1 << 63) - 1)  # of a message's type, a C long
JOURNAL_LINES = 20  # pending messages that `journal` shows
DEMO_RUNTIMES = ("auto", "runc", "unshare")


class _Parser(argparse.ArgumentParser):
    """Its errors are one line, as all of nsbridge's are."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv without the program by default); the result is the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal's encoding must not decide whether we fail
    return _flushed(_outcome(sys.argv[1:] if argv is None else argv))


def _outcome(argv: Sequence[str]) -> int:
    """The exit code of a command line; whatever went wrong has been said on stderr."""
    try:
        options = parse(argv)
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except NsbridgeError as error:
        for line in str(error).splitlines():
            print(f"nsbridge: {line}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read our output has seen enough (| head)
        return EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        print(f"nsbridge: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        return EXIT_FAILED


def _flushed(code: int) -> int:
    """`code`, or 1 if what was printed cannot be written; a reader that has gone decides nothing any more."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush at the end
        if not isinstance(error, BrokenPipeError):
            print(f"nsbridge: cannot write the output: {error.strerror}", file=sys.stderr)
            return EXIT_FAILED
    return code


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The checked command line; UsageError says what is wrong with it. `run(options)` carries it out."""
    options = _parser().parse_args(argv)
    if options.run is _bridge:
        _check_that_it_cannot_hear_itself(options)
    return options


def _parser() -> argparse.ArgumentParser:
    about = _Parser(add_help=False)
    about.add_argument("--version", action="version", version=f"nsbridge {version('nsbridge')}")
    parser = _Parser(
        prog="nsbridge",
        parents=[about],
        description="Carries messages between two containers that share no namespace.",
        epilog="The daemon is nsbridged, and nsbridgectl asks and steers it.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    _add_bridge(commands.add_parser("bridge", parents=[about], help="one route between two namespaces, until Ctrl-C"))
    _add_demo(commands.add_parser("demo", parents=[about], help="two containers, the bridge between them, a kill -9"))
    _add_containers(commands.add_parser("containers", parents=[about], help="what containers this host has"))
    _add_journal(commands.add_parser("journal", parents=[about], help="a journal, readable"))
    return parser


def _add_bridge(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Carries what is written to the file OUT in the mount namespace NS_MNT to the SysV queue KEY in the ipc "
        "namespace NS_IPC, and what the queue answers to the file IN; in the foreground, until Ctrl-C. Nothing that is "
        "on its way outlives it: for that there is nsbridged."
    )
    parser.epilog = "example: nsbridge bridge /proc/4711/ns/ipc /proc/4712/ns/mnt"
    parser.add_argument(
        "ns_ipc", metavar="NS_IPC", type=_namespace_path, help="the queue's namespace: /proc/PID/ns/ipc"
    )
    parser.add_argument("ns_mnt", metavar="NS_MNT", type=_namespace_path, help="the files' namespace: /proc/PID/ns/mnt")
    _add_bridge_options(parser)
    parser.set_defaults(run=_bridge)


def _add_bridge_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", metavar="K", type=_key, default=0x4D2, help="the queue's key (default: 0x4d2)")
    parser.add_argument(
        "--out",
        metavar="PATH",
        type=_inner_path,
        default="/tmp/to_server",  # noqa: S108  (inside the container, the one-process bridge's name)
        help="the file that leaves its container (default: %(default)s)",
    )
    parser.add_argument(
        "--in",
        dest="in_",
        metavar="PATH",
        type=_inner_path,
        default="/tmp/to_client",  # noqa: S108  (the same)
        help="the file that what comes is written to (default: %(default)s)",
    )
    parser.add_argument(
        "--send-type",
        metavar="N",
        type=_send_type,
        default=1,
        help="the type given to messages that enter the queue (default: %(default)s)",
    )
    parser.add_argument(
        "--receive-type",
        metavar="N",
        type=_integer,
        default=2,
        help="the type taken from the queue; -N: the lowest type up to N (default: %(default)s)",
    )


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Makes two isolated containers, an echo server on a SysV queue in one, an echo client on files in the other, "
        "and nsbridged between them; sends each MESSAGE, kills an agent with SIGKILL, sends again, and removes it all. "
        "At a terminal and without a MESSAGE it reads yours. Needs no root and nothing that is not on this machine."
    )
    parser.add_argument(
        "--runtime",
        choices=DEMO_RUNTIMES,
        default="auto",
        help="how the containers are made: runc, unshare (plain namespaces), or auto: runc if it works here",
    )
    parser.add_argument("messages", metavar="MESSAGE", nargs="*", help="a line of at most 8000 bytes")
    parser.set_defaults(run=_demo)


def _add_containers(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Lists the containers of this host by the name that a configuration has for them, with the pid of each one's "
        "init and the inode numbers of its mount and ipc namespaces (* marks those that are this shell's own)."
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_containers)


def _add_journal(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Prints a journal: STATE_DIR/journal/ROUTE/AGENT.out, what that agent has taken and the other side not yet "
        "confirmed, or AGENT.in, what it has handed over. A running daemon is not disturbed."
    )
    parser.add_argument("file", metavar="FILE", help="the journal, like /run/nsbridge/journal/orders/web.out")
    parser.add_argument("--all", action="store_true", help=f"every pending message, not just the first {JOURNAL_LINES}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_journal)


def _bridge(options: argparse.Namespace) -> int:
    from nsbridge.supervisor.oneshot import BridgeRequest, run  # noqa: PLC0415

    names = ("ns_ipc", "ns_mnt", "key", "out", "in_", "send_type", "receive_type")
    return run(BridgeRequest(**{name: getattr(options, name) for name in names}))


def _demo(options: argparse.Namespace) -> int:
    from nsbridge.supervisor.demo.scenario import run  # noqa: PLC0415

    return run(options.runtime, options.messages)


def _containers(options: argparse.Namespace) -> int:
    from nsbridge.supervisor import render  # noqa: PLC0415
    from nsbridge.supervisor.listing import list_containers  # noqa: PLC0415

    rows = list_containers()
    if options.json:
        print(json.dumps({"schema": 1, "containers": [dataclasses.asdict(row) for row in rows]}, indent=2))
        return EXIT_OK
    if not rows:
        print("no containers")
        return EXIT_OK
    cells = [["NAME", "STATE", "PID", "MNT", "IPC", ""]]
    for row in rows:
        inodes = ((row.mnt_inode, row.mnt_is_own), (row.ipc_inode, row.ipc_is_own))
        namespaces = [f"{inode}{'*' if is_own else ''}" if inode else "-" for inode, is_own in inodes]
        cells.append([row.name, row.state, str(row.pid or "-"), *namespaces, row.note])
    for line in render.table(cells):
        print(line)
    return EXIT_OK


def _journal(options: argparse.Namespace) -> int:
    from nsbridge.supervisor import journalview  # noqa: PLC0415

    facts = journalview.read(options.file, None if options.all else JOURNAL_LINES)
    print("\n".join([json.dumps(facts, indent=2)] if options.json else journalview.lines(facts)))
    return EXIT_OK


def _namespace_path(text: str) -> str:
    """A path of the host; what is relative is relative to where the person stands."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("must be the path of a namespace, like /proc/4711/ns/ipc")
    return os.path.abspath(text)  # noqa: PTH100  (Path.absolute keeps the ..)


def _inner_path(text: str) -> str:
    """A path of the container, by the rules that a configuration has for it."""
    from nsbridge.config.problems import Refused  # noqa: PLC0415
    from nsbridge.config.values import path  # noqa: PLC0415

    try:
        return path(text)
    except Refused as refused:
        raise argparse.ArgumentTypeError(str(refused)) from None


def _key(text: str) -> int:
    from nsbridge.config.problems import Refused  # noqa: PLC0415
    from nsbridge.config.values import queue_key  # noqa: PLC0415

    try:
        return queue_key(_any_integer(text))
    except Refused as refused:
        raise argparse.ArgumentTypeError(str(refused)) from None


def _integer(text: str) -> int:
    number = _any_integer(text)
    if not I64[0] <= number <= I64[1]:
        raise argparse.ArgumentTypeError(f"{text} is out of range: a type is a signed 64-bit number")
    return number


def _send_type(text: str) -> int:
    number = _integer(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}: msgsnd(2) takes no other type")
    return number


def _any_integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, in decimal or like 0x4d2, got {text!r}") from None


def _check_that_it_cannot_hear_itself(options: argparse.Namespace) -> None:
    """Refuse what would carry the bridge's own messages round for ever."""
    send, receive = options.send_type, options.receive_type
    if receive in (0, send) or -receive >= send:
        raise UsageError(
            f"--receive-type {receive} takes messages of --send-type {send} too, so the bridge would hear itself: "
            "let the two differ"
        )
    if os.path.normpath(options.out) == os.path.normpath(options.in_):
        raise UsageError(f"--out and --in are both {options.out}, so the bridge would hear itself: let the two differ")


if __name__ == "__main__":
    sys.exit(main())
