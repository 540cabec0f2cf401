"""nsbridgectl: a command for everything about a running daemon.

Starting fast matters more here than anywhere else (a person types it, a monitor runs it every few seconds), so it
imports what `status` needs and nothing else: the few options are parsed by hand, because argparse costs as much to
load as all the rest together, and what only rare paths need is imported there.
"""

from __future__ import annotations

import json
import os
import sys

from nsbridge.config.errors import (
    EXIT_FAILED,
    EXIT_NOT_RUNNING,
    EXIT_OK,
    NsbridgeError,
    UsageError,
)
from nsbridge.supervisor import render
from nsbridge.supervisor.client import DEFAULT_PATH, DEFAULT_TIMEOUT, Client

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

HELP = """\
usage: nsbridgectl [-s PATH | -c FILE] [--timeout S] [--json] COMMAND

commands:
  status [NAME...]           what runs and what does not, and what has been delivered
  start NAME...|all          start agents        (--wait: return when they run)
  stop NAME...|all           stop agents         (--wait: return when they have stopped)
  restart NAME...|all        stop and start them (--wait: return when they run again)
  tail [-f] [-n N] [NAME]    the last N (default 20) lines of the log, all or of NAME; -f: and those that follow
  dead list [NAME...]        messages that could not be delivered, and why
  dead show ID               one of them, with its content
  dead retry ID...|NAME|all  deliver them, now that they can be
  dead drop ID...|NAME|all   remove them for good
  inspect NAME               processes: memory, cpu, descriptors, capabilities, namespaces
  shutdown                   stop all agents in order, then the daemon
  version                    the version of the daemon

NAME is a route (orders) or an agent (orders:web); ID is what dead list shows (orders:legacy/12).

options:
  -s, --socket PATH    the control socket (default: $NSBRIDGE_CONTROL, else /run/nsbridge/control.sock)
  -c, --config FILE    take the control socket's path from this configuration
  --timeout S          seconds to wait for an answer (default: 5; 60 with --wait)
  --json               print JSON instead of a table (tail: one object a line)
  -h, --help           this text
  --version            the version of nsbridgectl

exit codes: 0 all right; 1 failed; 2 usage or configuration; 3 status: something that should run does not;
4 the daemon cannot be reached; 5 no such route or agent; 77 not permitted.
"""

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
WAIT_TIMEOUT = 60.0  # seconds, for start, stop and restart with --wait
TAIL_LINES = 20


class Options:
    """What the command line says."""

    __slots__ = ("command", "config", "follow", "json", "lines", "names", "socket", "timeout", "wait")

    def __init__(self) -> None:
        self.command = ""
        self.names: list[str] = []
        self.socket: str | None = None
        self.config: str | None = None
        self.timeout: float | None = None
        self.lines: int | None = None
        self.json = self.wait = self.follow = False


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv without the program by default); the result is the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: what is said goes nowhere
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # tests have streams without
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # a terminal's encoding must not decide whether we fail
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except NsbridgeError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"nsbridgectl: {render.escape(line)}\n")
        return error.exit_code
    except BrokenPipeError:  # whoever read our output has seen enough (| head)
        _give_up_stdout()
        return EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        _give_up_stdout()
        sys.stderr.write(f"nsbridgectl: cannot write the output: {error.strerror}\n")
        return EXIT_FAILED
    return code


def _give_up_stdout() -> None:
    """Let what is still buffered go nowhere: the interpreter tries once more at its end, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: list[str]) -> int:
    options = parse(argv)
    if options.command == "--help":
        sys.stdout.write(HELP)
        return EXIT_OK
    if options.command == "--version":
        from importlib.metadata import version  # noqa: PLC0415  (slow to load)

        sys.stdout.write(f"nsbridgectl {version('nsbridge')}\n")
        return EXIT_OK
    command, default = COMMANDS[options.command][0], WAIT_TIMEOUT if options.wait else DEFAULT_TIMEOUT
    timeout = default if options.timeout is None else options.timeout
    with Client(_socket_path(options), timeout) as client:
        return command(client, options)


def parse(argv: list[str]) -> Options:
    """The options and names of a command line; UsageError says what is wrong with it.

    `--help` and `--version` come back as the command, whatever else there is.
    """
    options, words, rest = Options(), [], list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            words += rest
            break
        if word in ("-h", "--help", "--version"):
            options.command = word if word == "--version" else "--help"
            return options
        if word.startswith("-"):
            _take_option(options, word, rest)
        else:
            words.append(word)
    if not words:
        raise UsageError(f"which command? one of {', '.join(COMMANDS)}; --help says more")
    options.command, options.names = words[0], words[1:]
    _check(options)
    return options


def _take_option(options: Options, word: str, rest: list[str]) -> None:
    """Note the option `word`, with its value from after the `=`, from behind its letter, or from `rest`."""
    flag, equals, value = word.partition("=")
    if not word.startswith("--"):
        flag, value = word[:2], word[2:]
    if flag in FLAGS and not (equals or value):
        setattr(options, FLAGS[flag], True)
        return
    if flag not in VALUES:
        raise UsageError(f"no such option: {word}; --help lists them")
    if not (equals or value):
        if not rest:
            raise UsageError(f"{flag} needs a value")
        value = rest.pop(0)
    attribute, convert = VALUES[flag]
    try:
        setattr(options, attribute, convert(value))
    except ValueError as error:
        raise UsageError(f"{flag} {value!r}: {error}") from None


def _check(options: Options) -> None:
    command = options.command
    if command == "dead":
        from nsbridge.supervisor import deadctl  # noqa: PLC0415

        deadctl.check(options.names)
    if command not in COMMANDS:
        raise UsageError(f"no such command: {command}; it must be one of {', '.join(COMMANDS)}")
    _, allowed, least, most = COMMANDS[command]
    for flag in ("wait", "follow", "lines"):
        if getattr(options, flag) not in (False, None) and flag not in allowed:
            raise UsageError(f"{command} does not take --{flag}")
    if len(options.names) < least:
        raise UsageError(f"{command} needs the name of a route or an agent" + (", or all" if most > 1 else ""))
    if len(options.names) > most:
        raise UsageError(f"{command}: too many arguments: {' '.join(options.names[most:])}")


def _socket_path(options: Options) -> str:
    if options.socket is not None:
        return options.socket
    if options.config is not None:
        from nsbridge.config.load import load  # noqa: PLC0415  (cattrs is slow to load)

        return load(options.config).daemon.control.path
    return os.environ.get("NSBRIDGE_CONTROL") or DEFAULT_PATH


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86400:  # noqa: PLR2004  (a day; also refuses nan)
        raise ValueError("it must be a number of seconds above 0, a day at most")
    return seconds


def _lines(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("it must be a number of lines, 0 or more")
    return int(text)


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("it must be a path")
    return text


def _status(client: Client, options: Options) -> int:
    result = client.call("status", {"names": options.names})
    if options.json:
        _print_json(result)
    else:
        _print(render.status(result, colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    agents = [agent for route in result["routes"] for agent in route["agents"]]
    failing = any(agent.get("wanted") and agent["state"] != "RUNNING" for agent in agents)
    return EXIT_NOT_RUNNING if failing else EXIT_OK


def _change(client: Client, options: Options) -> int:
    """Start, stop or restart; with --wait it has failed if an agent is in the end not what was asked for."""
    result = client.call(options.command, {"names": options.names, "wait": options.wait})
    agents = result["agents"]
    if options.json:
        _print_json(result)
    else:
        rows = [[render.escape(str(agent.get(key) or "")) for key in ("name", "state", "detail")] for agent in agents]
        _print(render.table(rows) if rows else [])
    aim = "STOPPED" if options.command == "stop" else "RUNNING"
    missed = [f"{agent['name']} is {agent['state']}" for agent in agents if agent["state"] != aim]
    if options.wait and missed:
        raise NsbridgeError(f"{options.command}: {', '.join(missed)}; nsbridgectl tail says more")
    return EXIT_OK


def _tail(client: Client, options: Options) -> int:
    lines = TAIL_LINES if options.lines is None else options.lines
    params: dict[str, object] = {"name": "".join(options.names), "count": lines, "follow": options.follow}
    try:
        for item in client.stream("tail", params, follow=options.follow):
            _print([json.dumps(item) if options.json else render.log_line(item)])
            if options.follow:
                sys.stdout.flush()
    except KeyboardInterrupt:  # the way to end it
        return EXIT_OK
    return EXIT_OK


def _inspect(client: Client, options: Options) -> int:
    result = client.call("inspect", {"name": options.names[0]})
    if options.json:
        _print_json(result)
    else:
        for number, process in enumerate(result):
            _print([*([""] if number else []), *render.tree(process)])
    return EXIT_OK


def _dead(client: Client, options: Options) -> int:
    from nsbridge.supervisor import deadctl  # noqa: PLC0415  (not what a person asks for every day)

    lines, code = deadctl.run(client, options.names, as_json=options.json)
    _print(lines)
    return code


def _shutdown(client: Client, options: Options) -> int:
    result = client.call("shutdown")
    if options.json:
        _print_json(result)
    else:
        _print(["nsbridged is shutting down"])
    return EXIT_OK


def _version(client: Client, options: Options) -> int:
    result = client.call("version")
    if options.json:
        _print_json(result)
    else:
        _print([render.escape(f"nsbridged {result['version']}")])
    return EXIT_OK


def _print(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


ANY = sys.maxsize
# command: what runs it, the options only some commands take, and how many names it takes (least, most)
COMMANDS: dict[str, tuple[Callable[[Client, Options], int], tuple[str, ...], int, int]] = {
    "status": (_status, (), 0, ANY),
    "start": (_change, ("wait",), 1, ANY),
    "stop": (_change, ("wait",), 1, ANY),
    "restart": (_change, ("wait",), 1, ANY),
    "tail": (_tail, ("follow", "lines"), 0, 1),
    "inspect": (_inspect, (), 1, 1),
    "dead": (_dead, (), 1, ANY),
    "shutdown": (_shutdown, (), 0, 0),
    "version": (_version, (), 0, 0),
}
FLAGS = {"--json": "json", "--wait": "wait", "-f": "follow", "--follow": "follow"}
VALUES: dict[str, tuple[str, Callable[[str], object]]] = {
    "-s": ("socket", _path),
    "--socket": ("socket", _path),
    "-c": ("config", _path),
    "--config": ("config", _path),
    "--timeout": ("timeout", _seconds),
    "-n": ("lines", _lines),
    "--lines": ("lines", _lines),
}

if __name__ == "__main__":
    sys.exit(main())
