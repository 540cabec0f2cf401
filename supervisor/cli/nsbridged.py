"""`nsbridged`: reads the configuration, takes the state directory, runs the supervisor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nsbridge.config import trusted
from nsbridge.config.advice import advice
from nsbridge.config.errors import EXIT_OK, NotPermittedError, NsbridgeError
from nsbridge.config.hostfiles import UnusableFileError, open_host_file
from nsbridge.config.load import load, load_trusted
from nsbridge.config.schema import Config
from nsbridge.supervisor import notify
from nsbridge.supervisor.cli import program
from nsbridge.supervisor.cli.client import DEFAULT_PATH
from nsbridge.supervisor.cli.commands.nsbridged import PROGRAM
from nsbridge.supervisor.cli.commands.parse import parse
from nsbridge.supervisor.containers import unknown
from nsbridge.supervisor.control.access import Access
from nsbridge.supervisor.host import detach
from nsbridge.supervisor.host import limits as hostlimits
from nsbridge.supervisor.host.pidfile import PidFile
from nsbridge.supervisor.log.log import open_log
from nsbridge.supervisor.supervisor import Supervisor

_NO_LOG_FILE = (
    "nsbridged: the daemon keeps the end of its log in memory, and {} shows it; no file has it: "
    'to keep it, set log = {{ file = "/var/log/nsbridge.log" }} in [daemon]\n'
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code (config/errors.py)."""
    return program.run("nsbridged", argv, _command)


def _command(argv: list[str]) -> int:
    options = parse(PROGRAM.command, argv)
    if options.wants:
        return program.show_help(PROGRAM, options)
    if options.check:
        return _check(load(options.config))
    try:
        return _serve(options.config, detached=options.daemon)
    except KeyboardInterrupt:  # Ctrl-C before its signals are handled is an orderly end, too
        return EXIT_OK


def _check(config: Config) -> int:
    Access.of(config.daemon.control)  # it would refuse to start
    sys.stdout.write(f"{config.source}: right; {config.count}\n")
    if not config.routes:
        sys.stdout.write(f"{config.source}: no [route.NAME] yet, so nsbridged would have nothing to carry\n")
    if config.daemon.log.file and not Path(config.daemon.log.file).parent.is_dir():
        sys.stdout.write(f"{config.source}: this host: daemon.log.file: make {Path(config.daemon.log.file).parent}\n")
    for line in (*_untrusted(config), *_unusable(config)):
        sys.stdout.write(f"{config.source}: this host: {line}\n")
    for line in advice(config):
        sys.stdout.write(f"{config.source}: {line}\n")
    for line in unknown.warnings(config):
        sys.stdout.write(f"{config.source}: this host: {line}\n")
    for line in hostlimits.shortages(config, hostlimits.read_host()):
        sys.stdout.write(f"{config.source}: this host: {line}\n")
    return EXIT_OK


def _untrusted(config: Config) -> Iterator[str]:
    """Find files that the daemon would refuse to use, because users other than root can change them."""
    named = [
        ("", config.source),
        *(("", path) for path in config.drop_ins),
        ("daemon.state_dir: ", config.daemon.state_dir),
    ]
    if config.daemon.log.file:
        named.append(("daemon.log.file: ", config.daemon.log.file))
    for key, path in named:
        try:
            os.close(trusted.pin(path, group_dir=key.startswith("daemon.log")))
        except trusted.UntrustedError as error:
            yield f"{key}{error}"
        except OSError:
            pass  # missing files are made, or were reported


def _unusable(config: Config) -> Iterator[str]:
    """Find the host's files that agents would refuse to read: keys, credentials and certificates."""
    for route in config.routes:
        for agent in route.agents:
            for file in agent.endpoint.host_files:
                try:
                    os.close(open_host_file(file))
                except (UnusableFileError, trusted.UntrustedError) as error:
                    yield f"{agent.name}: {error}"


def _serve(file: str, *, detached: bool) -> int:
    if os.geteuid() != 0:
        load(file)  # its own problems are reported first
        raise NotPermittedError(
            "must be root to enter containers' namespaces: run it with sudo, or as a system service"
        )
    config = load_trusted(file)
    detach.open_standard_streams()  # or a socket would get the number of one, and agents would lose it
    state_dir = Path(config.daemon.state_dir)
    try:
        os.close(trusted.open_directory(str(state_dir), make=0o755))
    except trusted.UntrustedError as error:
        raise NsbridgeError(f"daemon.state_dir {state_dir}: {error}") from None
    except OSError as error:
        raise NsbridgeError(f"daemon.state_dir {state_dir}: {error.strerror}") from None
    pidfile = PidFile(str(state_dir / "nsbridged.pid"))
    wanted = notify.take_from(os.environ, os.getpid())

    def start(ready: Callable[[], None]) -> int:
        log = open_log(config.daemon.log)
        try:
            _run(Supervisor(config, log, pidfile=pidfile), wanted, ready)
        except BaseException as error:
            if detached or config.daemon.log.file is not None:  # or it would appear twice at the same place
                log.error("", f"ended by {_described(error)}")  # noqa: PLE1205  (our log, not logging's)
            raise
        finally:
            log.close()
        return EXIT_OK

    if detached:
        code = detach.run_detached(start, pidfile)
        if code == EXIT_OK and config.daemon.log.file is None:
            control = "" if config.daemon.control.path == DEFAULT_PATH else f" -s {config.daemon.control.path}"
            sys.stderr.write(_NO_LOG_FILE.format(f"nsbridgectl{control} tail"))
        return code
    with pidfile:
        return start(lambda: None)


def _described(error: BaseException) -> str:
    """Return the message of an error of ours; any other is a bug, or a signal's."""
    return f"an error: {error}" if isinstance(error, NsbridgeError) else f"{type(error).__name__}: {error}"


def _run(supervisor: Supervisor, wanted: notify.Wanted, ready: Callable[[], None]) -> None:
    notifier = notify.Notifier(wanted, supervisor.loop, supervisor.events, supervisor.states)

    def report_ready() -> None:
        ready()
        notifier.ready()

    try:
        supervisor.run(report_ready)
    finally:
        notifier.close()


if __name__ == "__main__":
    sys.exit(main())
