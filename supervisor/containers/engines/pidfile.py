"""A process whose number a file holds: `pidfile:PATH`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.trusted import UntrustedError
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import (
    PID_PATTERN,
    ContainerRefused,
    Found,
    NotPermitted,
    NotRunning,
    found_by_pid,
    quoted,
    read_bounded,
)

KIND = ContainerKind("pidfile", None, 'write a path, like "pidfile:/run/web.pid"')
PIDFILE_LIMIT = 64  # bytes


class Pidfile(Engine):
    """Finds a process by its pidfile. If another process reuses the number, a stale file looks like a fresh one."""

    kind = KIND

    def locate(self, name: str) -> Found:
        """See Engine."""
        try:
            text = read_bounded(name, PIDFILE_LIMIT).decode("ascii", "backslashreplace").strip()
        except FileNotFoundError:
            raise NotRunning(f"pidfile {quoted(name)} is not there") from None
        except PermissionError:
            raise NotPermitted(f"pidfile {quoted(name)} cannot be read: run nsbridge as root") from None
        except OSError as error:
            raise NotRunning(f"pidfile {quoted(name)} cannot be read: {error.strerror}") from None
        except UntrustedError as error:
            raise ContainerRefused(f"pidfile {quoted(name)}: {error}") from None
        except ValueError as error:
            raise ContainerRefused(f"pidfile {quoted(name)} {error}") from None
        if not text:
            raise NotRunning(f"pidfile {quoted(name)} is empty")
        if not PID_PATTERN.fullmatch(text):
            raise ContainerRefused(f"pidfile {quoted(name)} holds {quoted(text)}, not a process number in decimal")
        try:
            return found_by_pid(int(text))
        except NotRunning as error:
            raise NotRunning(f"pidfile {quoted(name)}: {error}") from None

    def places(self, name: str) -> Sequence[tuple[str, str]]:
        """See Engine."""
        directory, file = os.path.split(name)
        return ((directory, file),)
