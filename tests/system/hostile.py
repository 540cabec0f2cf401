"""Hostile containers for tests: baits at the host's own paths, and ways to see that one was taken.

A bait that is run leaves its path in the canary file. That file is in the container's root directory, where every user
can write it and the test sees it. A bait that is only opened is seen by inotify, which reports the opening of an inode
in any namespace.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from inotify_simple import INotify, flags

import nsbridge.agents
import nsbridge.config
import nsbridge.supervisor
from tests.system.nsbridged import Nsbridged
from tests.system.room import tool

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
SECRET = b"root:$6$this-line-must-not-leave-its-container:0:0:::::\n"

_PYTHON = "with open('/srv/canary', 'a') as file:\n    file.write(__file__ + '\\n')\n"
_C = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void bait(void)
{
    int fd = open("/srv/canary", O_WRONLY | O_CREAT | O_APPEND, 0666);
    write(fd, "library\\n", 8);
    close(fd);
}
"""


class Variant(Nsbridged):
    """A daemon of hostile_daemon.py; `variants` is its first word, `more` has further keys of [daemon]."""

    def __init__(self, directory: Path, routes: str, variants: str, more: str = "") -> None:
        super().__init__(directory, routes, more)
        self.program = ("tests.system.hostile_daemon", variants)


class Baits:
    """Baits in one container's root directory, and what became of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.canary = root / "srv/canary"
        self._planted: set[Path] = set()

    def plant_everything(self, scratch: Path) -> None:
        """Plant baits at every path of the host from which an agent might load, look up, or read something."""
        self.plant_modules()
        self.plant_sources()
        self.plant_libraries(scratch)
        self.plant_settings()

    def plant_modules(self) -> None:
        """Plant each module of the standard library and each installed package, wherever Python looks."""
        names = {*sys.stdlib_module_names, "psutil", "sysv_ipc", "inotify_simple", "cattrs", "daemon", "nsbridge"}
        for directory in filter(None, (*sys.path, os.getcwd())):
            if Path(directory).is_dir():
                for name in names:
                    self._write(f"{directory}/{name}.py", _PYTHON)
        standard = Path(os.__file__).parent
        for source in (standard / "encodings").glob("*.py"):
            self._write(str(source), _PYTHON)

    def plant_sources(self) -> None:
        """Plant a FIFO in the place of each module of nsbridge; a process that opens it to show a line of it hangs."""
        for package in (nsbridge.agents, nsbridge.config, nsbridge.supervisor):
            for path in package.__path__:
                for source in Path(path).rglob("*.py"):
                    self._fifo(str(source))
        for source in (Path(__file__).with_name("hostile_daemon.py"), Path(os.__file__).with_name("threading.py")):
            self._fifo(str(source))

    def plant_libraries(self, scratch: Path) -> None:
        """Plant shared libraries with a constructor, and a program."""
        source, library = scratch / "bait.c", scratch / "bait.so"
        source.write_text(_C, encoding="ascii")
        subprocess.run([tool("cc"), "-shared", "-fPIC", "-o", library, source], check=True)
        names = [
            "libgcc_s.so.1",
            "libnss_bait.so.2",
            *(f"libnss_{name}.so.2" for name in ("files", "dns", "compat", "systemd")),
        ]
        for directory in (LIBRARIES, "/lib/x86_64-linux-gnu", "/usr/lib", "/lib64"):
            for name in names:
                self._copy(library, f"{directory}/{name}")
        self._copy(library, f"{LIBRARIES}/gconv/UTF-16.so")
        self._write("/bin/bait", "#!/bin/sh\necho program >> /srv/canary\n").chmod(0o755)

    def plant_settings(self) -> None:
        """Plant what the C library reads by itself; a FIFO where that hangs."""
        self._write("/etc/nsswitch.conf", "passwd: bait\ngroup: bait\nhosts: bait\n")
        self._write("/etc/shadow", SECRET.decode())
        for name in ("passwd", "hosts", "resolv.conf", "host.conf", "gai.conf"):
            self._write(f"/etc/{name}", "")
        zones = Path("/usr/share/zoneinfo")
        for path in ("/etc/localtime", "/etc/group", zones / "Europe/Berlin", zones / "UTC0", zones / "Etc/UTC"):
            self._fifo(str(path))
        for path in ("/usr/lib/locale/locale-archive", "/usr/share/locale/de/LC_MESSAGES/libc.mo"):
            self._fifo(path)

    @contextmanager
    def watched(self) -> Iterator[Opened]:
        """Yield the baits that are opened while it lasts."""
        with INotify(nonblocking=True) as inotify:
            directories = {path.parent for path in self._planted}
            watches = {inotify.add_watch(directory, flags.OPEN): directory for directory in directories}
            yield Opened(inotify, watches, self._planted)

    def ran(self) -> list[str]:
        """Return which baits were run."""
        return self.canary.read_text(encoding="utf-8").splitlines() if self.canary.exists() else []

    def _place(self, path: str) -> Path:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        self._planted.add(place)
        return place

    def _write(self, path: str, text: str) -> Path:
        place = self._place(path)
        place.write_text(text, encoding="utf-8")
        return place

    def _fifo(self, path: str) -> None:
        os.mkfifo(self._place(path))

    def _copy(self, source: Path, path: str) -> None:
        shutil.copy(source, self._place(path))


class Opened:
    """Openings of the baits, as inotify reports them."""

    def __init__(self, inotify: INotify, watches: dict[int, Path], baits: set[Path]) -> None:
        self._inotify = inotify
        self._watches = watches
        self._baits = baits
        self._fifos = [path for path in baits if path.is_fifo()]

    def baits(self) -> list[str]:
        """Return those that were opened since the last call."""
        paths = {self._watches[event.wd] / event.name for event in self._inotify.read(timeout=0)}
        return sorted(
            str(path) for path in (paths & self._baits) | {fifo for fifo in self._fifos if _is_waited_at(fifo)}
        )


def _is_waited_at(fifo: Path) -> bool:
    """True if a process is opening it for reading just now, which inotify does not report yet; release that process."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    return True


def executable(pid: int) -> set[tuple[str, int]]:
    """Return device and inode of each file of which a process has an executable mapping."""
    mapped = set()
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        _, permissions, _, device, inode, *_ = line.split()
        if "x" in permissions and inode != "0":
            mapped.add((device, int(inode)))
    return mapped


def foreign_code(daemon: Nsbridged) -> set[tuple[str, int]]:
    """Return what its agents may run that the supervisor, which has never been in a container, may not."""
    own = executable(daemon.pid)
    return {mapping for pid in processes(daemon) for mapping in executable(pid) - own}


def processes(daemon: Nsbridged) -> list[int]:
    """Return its agents and their senders."""
    return [child.pid for child in psutil.Process(daemon.pid).children(recursive=True)]


def is_clean(output: bytes, *, allowed: Iterable[int] = b"\n") -> bool:
    """True if nothing in it can act on a terminal or begin a line of its own: printable UTF-8 and `allowed`."""
    text = output.decode("utf-8")  # or it is not even text
    return all(character.isprintable() or ord(character) in allowed for character in text)
