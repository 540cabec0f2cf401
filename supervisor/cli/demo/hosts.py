"""Two hosts on one machine: each has mount and network namespaces of its own, and one cable joins them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

from nsbridge.agents import linux
from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.cli.demo.containers import Site, namespace
from nsbridge.supervisor.cli.demo.waiting import Lines

PORT = 4222
ADDRESSES = ("10.77.0.1", "10.77.0.2")  # nothing else is in these network namespaces
_START_LIMIT = 20.0  # seconds
_PLACES = os.defpath + ":/usr/sbin:/usr/local/sbin:/sbin"


def tool(name: str, package: str) -> str:
    """Return the path of a program. Raises NsbridgeError if it is not installed."""
    found = shutil.which(name) or shutil.which(name, path=_PLACES)
    if found is None:
        raise NsbridgeError(f"--two-hosts needs {name}, which is not installed: apt-get install {package}")
    return found


class Host:
    """A host; `site.stack` ends it."""

    def __init__(self, site: Site, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.work = site.work / name
        self.work.mkdir()
        self._site = site
        command = [sys.executable, "-P", "-m", "nsbridge.supervisor.cli.demo.host"]
        self._holder = subprocess.Popen(  # noqa: S603  (our own program)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        site.stack.callback(self._end)
        assert self._holder.stdout is not None  # noqa: S101  (a pipe)
        line = Lines(self._holder.stdout.fileno(), site.waits).next(_START_LIMIT)
        if line != b"Ready":
            raise NsbridgeError(f"a host cannot be made here: {(line or b'').decode(errors='replace')}")
        paths = [f"/proc/{self.pid}/ns/{kind}" for kind in ("net", "mnt")]
        self._namespaces = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
        for fd in self._namespaces:
            site.stack.callback(os.close, fd)

    @property
    def pid(self) -> int:
        """Return the pid of the process that holds its namespaces."""
        return self._holder.pid

    def namespace(self, kind: str) -> int:
        """Return the inode number of its namespace."""
        return namespace(self.pid, kind)

    def enter(self) -> None:
        """Move this process, a new child of the demo, to the host; it gets SIGTERM when the demo dies."""
        for fd in self._namespaces:
            linux.setns(fd, 0)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)

    def do(self, argv: Sequence[str]) -> None:
        """Run a command on the host. Raises NsbridgeError with its output if it fails."""
        done = subprocess.run(  # noqa: S603  (programs of the demo)
            list(argv), preexec_fn=self.enter, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode:
            said = (done.stderr + done.stdout).decode(errors="replace").strip()
            raise NsbridgeError(f"{' '.join(argv[:3])} on {self.name}: {said}")

    def _end(self) -> None:
        self._holder.kill()
        self._holder.communicate()


def join(one: Host, two: Host) -> None:
    """Lay a cable (veth) between two hosts. Raises NsbridgeError."""
    ip = tool("ip", "iproute2")
    one.do([ip, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(two.pid)])
    for host in (one, two):
        host.do([ip, "link", "set", "lo", "up"])
        host.do([ip, "address", "add", f"{host.address}/24", "dev", "cable"])
        host.do([ip, "link", "set", "cable", "up"])


class NatsServer:
    """A real nats-server with JetStream in files, on a host; `site.stack` ends it."""

    def __init__(self, site: Site, host: Host) -> None:
        self._program = tool("nats-server", "nats-server")
        self._host = host
        self._where = host.work / "nats"
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        site.stack.callback(self.kill)

    def start(self, streams: Sequence[str]) -> None:
        """Start it; return when it serves these streams."""
        where = ["--store_dir", str(self._where), "--log", str(self._host.work / "nats.log")]
        self._process = subprocess.Popen(  # noqa: S603  (its path is the installed one)
            [self._program, "--addr", self._host.address, "--port", str(PORT), "--jetstream", *where],
            preexec_fn=self._host.enter,  # noqa: PLW1509  (no threads)
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pid = self._process.pid
        module = "nsbridge.supervisor.cli.demo.streams"
        self._host.do([sys.executable, "-P", "-m", module, self._host.address, str(PORT), *streams])

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
