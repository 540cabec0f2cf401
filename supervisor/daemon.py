"""`nsbridged`: reads the configuration, takes the state directory, runs the supervisor."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from nsbridge.config.errors import EXIT_OK, NotPermittedError, NsbridgeError
from nsbridge.config.load import load
from nsbridge.config.schema import Config
from nsbridge.supervisor import detach, notify
from nsbridge.supervisor.logs import open_log
from nsbridge.supervisor.pidfile import PidFile
from nsbridge.supervisor.supervisor import Supervisor

DEFAULT_CONFIG = "/etc/nsbridge/nsbridge.toml"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (config/errors.py)."""
    arguments = _parser().parse_args(argv)
    try:
        config = load(arguments.config)
        if arguments.check:
            return _check(config)
        return _serve(config, detached=arguments.daemon)
    except NsbridgeError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"nsbridged: {line}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nsbridged",
        description="Carries messages between containers that share no namespace, as its configuration says.",
        epilog="Signals: TERM and INT stop in order, HUP reads the configuration again, USR1 reopens the log. "
        "Control it with nsbridgectl.",
    )
    parser.add_argument("-c", "--config", metavar="FILE", default=DEFAULT_CONFIG, help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="say whether the configuration is right, and end")
    parser.add_argument("--daemon", action="store_true", help="detach; returns when the daemon is ready")
    parser.add_argument("--version", action="version", version=f"nsbridged {version('nsbridge')}")
    return parser


def _check(config: Config) -> int:
    routes = len(config.routes)
    sys.stdout.write(f"{config.source}: right; {routes} route{'' if routes == 1 else 's'}\n")
    if not routes:
        sys.stdout.write(f"{config.source}: no [route.NAME] yet, so nsbridged would have nothing to carry\n")
    return EXIT_OK


def _serve(config: Config, *, detached: bool) -> int:
    if os.geteuid() != 0:
        raise NotPermittedError(
            "must be root to enter containers' namespaces: run it with sudo, or as a system service"
        )
    detach.open_standard_streams()  # or a socket would get the number of one, and agents would lose it
    state_dir = Path(config.daemon.state_dir)
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise NsbridgeError(f"daemon.state_dir {state_dir}: {error.strerror}") from None
    pidfile = PidFile(str(state_dir / "nsbridged.pid"))
    wanted = notify.take_from(os.environ, os.getpid())

    def start(ready: Callable[[], None]) -> int:
        log = open_log(config.daemon.log)
        try:
            _run(Supervisor(config, log), wanted, ready)
        except BaseException as error:
            # Once it is detached it has nobody else to tell.
            log.error("", f"ended by {type(error).__name__}: {error}")  # noqa: PLE1205  (our log, not logging's)
            raise
        finally:
            log.close()
        return EXIT_OK

    if detached:
        return detach.run_detached(start, pidfile)
    with pidfile:
        return start(lambda: None)


def _run(supervisor: Supervisor, wanted: notify.Wanted, ready: Callable[[], None]) -> None:
    notifier = notify.Notifier(wanted, supervisor.loop, supervisor.events, supervisor.states)

    def tell_both() -> None:
        ready()
        notifier.ready()

    try:
        supervisor.run(tell_both)
    finally:
        notifier.close()


if __name__ == "__main__":
    sys.exit(main())
