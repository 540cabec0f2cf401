"""nsbridged as the tests of hostile containers need it: with faults put in, and on demand with its defences off.

    python -m tests.system.hostile_daemon VARIANT[,VARIANT…] -c FILE

provoked    a file in a spool that is called provoke-WHAT makes its agent do WHAT, once, as a bug or a library might
unfrozen    imports are not frozen, and nothing confines an agent
naive       files of the container are opened by name: links are followed, FIFOs and leases waited for
rogue       the agent called NAME:rogue does, once it is ready, what rogue.py lists under the route's name
memory      the same, with what rogue_memory.py adds

The product has no switch for any of this: here its functions are exchanged before the daemon starts.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pwd  # noqa: F401  (a provocation uses it, and must not have to import it)
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nsbridge.agents import fork
from nsbridge.agents.confinement import entry
from nsbridge.agents.endpoints import files
from nsbridge.agents.endpoints.spool.source import SpoolSource
from nsbridge.supervisor.cli import nsbridged as daemon
from tests.system import rogue, rogue_memory

PREFIX = b"provoke-"


def main() -> int:
    """Exchange what the variants say, then be the daemon."""
    for variant in sys.argv.pop(1).split(","):
        VARIANTS[variant]()
    return daemon.main()


# -- provocations


class _Unraisable:
    def __del__(self) -> None:
        raise ValueError("in a destructor, where nobody can catch it")


def _in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def _zone() -> None:
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()


def _traceback() -> None:
    try:
        _divide()
    except ZeroDivisionError:
        traceback.print_exc()


def _divide() -> float:
    return 1 / int("0")


def _thread_exit() -> None:
    ctypes.CDLL(None).pthread_exit(None)


def _exec() -> None:
    """Exec with the control channel open, so that the supervisor does not kill it before the bait has done anything."""
    for fd in range(fork._HIGH, fork._HIGH + 32):  # where fork.release_first puts it
        with suppress(OSError):
            os.set_inheritable(fd, True)
    os.execv("/bin/bait", ["bait"])


PROVOCATIONS: dict[str, Callable[[], object]] = {
    "import": lambda: importlib.import_module("wave"),
    "codec": lambda: "x.y".encode("idna"),
    "strptime": lambda: time.strptime("1", "%d"),
    "getaddrinfo": lambda: socket.getaddrinfo(b"host.example", 1),
    "pwd": lambda: sys.modules["pwd"].getpwnam("nobody-has-this-name"),
    "zone": _zone,
    "localtime": lambda: time.strftime("%c %Z", time.localtime(0)),
    "warning": lambda: warnings.warn("for nobody", UserWarning, stacklevel=1),
    "traceback": _traceback,
    "unraisable": _Unraisable,
    "dlopen": lambda: ctypes.CDLL("libnss_bait.so.2"),
    "thread-exit": lambda: _in_thread(_thread_exit),
    "exec": _exec,
    "thread": lambda: _in_thread(_divide),
    "crash": _divide,
}
_DEADLY = {"thread", "crash"}  # what the agent is not to survive; the others it may


def provoke() -> None:
    """Have agents do what a file's name says."""
    read = SpoolSource._read

    def provoked(self: SpoolSource, name: bytes) -> Any:
        if not name.startswith(PREFIX):
            return read(self, name)
        os.unlink(name, dir_fd=self._directory.fd)  # once
        self._names.forget(name)
        what = name.removeprefix(PREFIX).decode()
        try:
            PROVOCATIONS[what]()
        except Exception as error:
            if what in _DEADLY:
                raise
            self._host.log("info", f"provoked {what}: {type(error).__name__}: {error}")
        else:
            self._host.log("info", f"provoked {what}: done")
        return None

    SpoolSource._read = provoked  # type: ignore[method-assign]


# -- defences off


def unfreeze() -> None:
    """Switch off frozen imports, the filter of system calls, and Landlock."""

    entry.freeze_imports = lambda: None
    entry.confine = lambda *_about: entry.Confined()


class NaiveTree(files.Tree):
    """Opens by name, as one does."""

    def open_directory(self, path: bytes, mode: int | None = None) -> int:
        """Open it wherever it leads to."""
        Path(os.fsdecode(path)).mkdir(exist_ok=True)
        return os.open(path, os.O_RDONLY)

    def open_file(self, directory: int, name: bytes, flags: int) -> int:
        """Open it whatever it is."""
        return os.open(name, flags, dir_fd=directory)

    def open_and_stat(self, directory: int, name: bytes, flags: int) -> tuple[int, os.stat_result]:
        """Open it whatever it is."""
        fd = os.open(name, flags, dir_fd=directory)
        return fd, os.fstat(fd)


def be_naive() -> None:
    """Exchange how the container's files are opened."""
    for name in ("open_directory", "open_file", "open_and_stat"):
        setattr(files.Tree, name, getattr(NaiveTree, name))


VARIANTS = {
    "provoked": provoke,
    "unfrozen": unfreeze,
    "naive": be_naive,
    "rogue": rogue.install,
    "memory": rogue_memory.install,
}

if __name__ == "__main__":
    sys.exit(main())
