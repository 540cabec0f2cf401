"""nsbridgectl: a command for everything about a running daemon.

Starting fast matters more here than anywhere else (a person types it, a monitor runs it every few seconds), so it
imports what `status` needs and nothing else; what only rare paths need is imported there. What there is to be typed
stands in commands/nsbridgectl.py.
"""

from __future__ import annotations

import json
import os
import sys

from nsbridge.config.errors import EXIT_NOT_RUNNING, EXIT_OK, NsbridgeError, UnreachableError
from nsbridge.config.text import escape
from nsbridge.supervisor.cli import program, render
from nsbridge.supervisor.cli.client import DEFAULT_PATH, DEFAULT_TIMEOUT, ControlClient, LateError
from nsbridge.supervisor.cli.commands.nsbridgectl import PROGRAM
from nsbridge.supervisor.cli.commands.parse import Parsed, parse

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

WAIT_TIMEOUT = 60.0  # seconds, for start, stop and restart with --wait


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv without the program by default); the result is the exit code."""
    return program.run("nsbridgectl", argv, _run)


def _run(argv: list[str]) -> int:
    options = parse(PROGRAM.command, argv)
    if options.wants:
        return program.show_help(PROGRAM, options)
    if options.command == "completion":
        from nsbridge.supervisor.cli.commands import completion  # noqa: PLC0415  (needs no daemon)

        sys.stdout.write(completion.answer(options.what, options.words))
        return EXIT_OK
    if options.command == "metrics":
        return _metrics(options)
    default = WAIT_TIMEOUT if options.values.get("wait") else DEFAULT_TIMEOUT
    with ControlClient(socket_path(options.socket, options.config), options.timeout or default) as client:
        return COMMANDS[options.path[1].name](client, options)


def socket_path(socket: str | None, config: str | None) -> str:
    """Return the socket of the daemon that is meant: from -s, from -c, from the environment, or the default."""
    if socket is not None:
        return socket
    if config is not None:
        from nsbridge.agents.endpoints import kinds as _kinds  # noqa: F401, PLC0415  (registers them for `load`)
        from nsbridge.config.load import load  # noqa: PLC0415  (cattrs is slow to load)
        from nsbridge.supervisor.containers import engines  # noqa: F401, PLC0415  (they register their names)

        return load(config, drop_ins=False).daemon.control.path
    return os.environ.get("NSBRIDGE_CONTROL") or DEFAULT_PATH


def _status(client: ControlClient, options: Parsed) -> int:
    result = client.call("status", {"names": options.names})
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    _show(options, result, lambda: render.status(result, colour=colour))
    agents = [agent for route in result["routes"] for agent in route["agents"]]
    failing = any(
        agent.get("wanted") and (agent["state"] != "RUNNING" or agent.get("blocked_long")) for agent in agents
    )
    return EXIT_NOT_RUNNING if failing else EXIT_OK


def _change(client: ControlClient, options: Parsed) -> int:
    """Start, stop or restart; with --wait it has failed if an agent is in the end not what was asked for."""
    try:
        with _progress(client, options):
            result = client.call(options.command, {"names": options.names, "wait": options.wait})
    except LateError as late:
        raise (_overdue(options, client.timeout) if options.wait else late) from None
    agents = result["agents"]
    rows = [[escape(str(agent.get(key) or "")) for key in ("name", "state", "detail")] for agent in agents]
    _show(options, result, lambda: render.table(rows) if rows else [])
    aim = "STOPPED" if options.command == "stop" else "RUNNING"
    missed = [f"{agent['name']} is {agent['state']}{render.reason(agent)}" for agent in agents if agent["state"] != aim]
    if options.wait and missed:
        raise NsbridgeError(f"{options.command}: {', '.join(missed)}; nsbridgectl tail says more")
    return EXIT_OK


def _progress(client: ControlClient, options: Parsed) -> AbstractContextManager[object]:
    """Show how much is left while the command waits."""
    from contextlib import nullcontext  # noqa: PLC0415  (not what a monitor runs every few seconds)

    if not options.wait:
        return nullcontext()
    from nsbridge.supervisor.cli.progress import Progress  # noqa: PLC0415

    return Progress(client.path, options.command, options.values.get("names") or [])


def _overdue(options: Parsed, limit: float) -> NsbridgeError:
    """Return the error for what is not done in time; UnreachableError if the daemon does not answer that either."""
    from nsbridge.supervisor.cli.progress import left  # noqa: PLC0415  (not what a monitor runs every few seconds)

    with ControlClient(socket_path(options.socket, options.config), DEFAULT_TIMEOUT) as client:
        result = client.call("status", {"names": options.values.get("names") or []})
    aim = "STOPPED" if options.command in ("stop", "shutdown") else "RUNNING"
    agents = [agent for route in result["routes"] for agent in route["agents"] if agent["state"] != aim]
    waited_for = [f"{agent['name']} is {agent['state']}{render.reason(agent)}" for agent in agents]
    return NsbridgeError(
        f"{options.command}: not done within {limit:g} s: {', '.join(waited_for) or 'done just now'}{left(result)}; "
        "it continues: nsbridgectl status shows its progress"
    )


def _reload(client: ControlClient, options: Parsed) -> int:
    result = client.call("reload", {"dry_run": options.dry_run, "wait": options.wait})
    _show(options, result, lambda: render.reload(result))
    return EXIT_OK


def _stream(client: ControlClient, options: Parsed) -> int:
    show = render.log_line if options.command == "tail" else render.event_line
    params: dict[str, object] = {"name": options.name or "", "count": options.lines, "follow": options.follow}
    try:
        for item in client.stream(options.command, params, follow=options.follow):
            _print([json.dumps(item) if options.json else show(item)])
            if options.follow:
                sys.stdout.flush()
    except KeyboardInterrupt:  # the way to end it
        pass
    return EXIT_OK


def _inspect(client: ControlClient, options: Parsed) -> int:
    from nsbridge.supervisor.cli import inspect as inspectview  # noqa: PLC0415  (not what a monitor runs every few seconds)

    result = client.call("inspect", {"name": options.name})
    _show(options, result, lambda: [line for agent in result for line in ("", *inspectview.lines(agent))][1:])
    return EXIT_OK


def _tap(client: ControlClient, options: Parsed) -> int:
    from nsbridge.supervisor.cli import tap  # noqa: PLC0415  (not what a monitor runs every few seconds)

    return tap.run(client, options)


def _top(client: ControlClient, options: Parsed) -> int:
    from nsbridge.supervisor.cli import topscreen  # noqa: PLC0415  (not what a monitor runs every few seconds)

    return topscreen.run(client, options)


def _metrics(options: Parsed) -> int:
    """Print metrics; of a daemon that cannot be reached, that it is down, before the error."""
    where = "nsbridge.supervisor.cli.web"
    metrics = program.module_of_extra("metrics", "web", f"{where}.metrics")
    snapshot = program.module_of_extra("metrics", "web", f"{where}.snapshot")
    try:
        path = socket_path(options.socket, options.config)
        with ControlClient(path, options.timeout or DEFAULT_TIMEOUT) as client:
            found = snapshot.parse(client.call("overview"))
            text, _ = metrics.text(found, sees_pids=client.daemon_pid == found.daemon["pid"])
    except UnreachableError:
        sys.stdout.write(metrics.text(None, sees_pids=False)[0].decode())
        raise
    sys.stdout.write(text.decode())
    return EXIT_OK


def _dead(client: ControlClient, options: Parsed) -> int:
    from nsbridge.supervisor.cli import dead as deadctl  # noqa: PLC0415  (not what a person asks for every day)

    names = [options.id] if "id" in options.values else options.names
    lines, code = deadctl.run(client, options.path[-1].name, names, as_json=options.json)
    _print(lines)
    return code


def _shutdown(client: ControlClient, options: Parsed) -> int:
    try:
        with _progress(client, options):
            result = client.shutdown(wait=options.wait)
    except LateError as late:
        raise (_overdue(options, client.timeout) if options.wait else late) from None
    begun = "nsbridged is shutting down: it hands over what is in flight first (--wait returns when it has ended)"
    _show(options, result, lambda: ["nsbridged has ended" if options.wait else begun])
    return EXIT_OK


def _version(client: ControlClient, options: Parsed) -> int:
    result = client.call("version")
    _show(options, result, lambda: [escape(f"nsbridged {result['version']}")])
    return EXIT_OK


def _print(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _show(options: Parsed, result: Any, lines: Callable[[], list[str]]) -> None:
    """Print the daemon's answer: with --json as it is, else the lines for people."""
    _print([json.dumps(result, indent=2)] if options.json else lines())


COMMANDS: dict[str, Callable[[ControlClient, Parsed], int]] = {
    "status": _status,
    "start": _change,
    "stop": _change,
    "restart": _change,
    "reload": _reload,
    "tail": _stream,
    "events": _stream,
    "inspect": _inspect,
    "tap": _tap,
    "top": _top,
    "dead": _dead,
    "shutdown": _shutdown,
    "version": _version,
}

if __name__ == "__main__":
    sys.exit(main())
