"""Measures what a kill of the agent loses of what programs have sent into a Unix socket.

    python -m tests.system.socket_losses [--kills 100]

One program sends numbered messages as fast as they are taken, while the agent that receives them is killed again and
again; a spool across gets them. It counts what the kernel accepted and no file has. A datagram socket is measured
twice: as nsbridge does it, with the socket held by the supervisor, and with an agent that makes its own.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.system.engines import EngineContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until
from tests.system.storm import containers

KINDS = {"datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET, "stream": socket.SOCK_STREAM}
_AT_REST = 0.5  # seconds without a new file: what has not come by then is lost
_PACE = 0.0003  # seconds between messages: about what a spool takes


class OwnSocket(Nsbridged):
    """A daemon that holds no socket: each agent gets a new one."""

    program = ("tests.system.unheld_daemon",)


class Loss(NamedTuple):
    """Counts of the messages of one socket."""

    kills: int
    sent: int
    lost: int
    repeated: int

    def __str__(self) -> str:
        return f"{self.kills} kills, {self.sent} messages: {self.lost} lost, {self.repeated} repeated"


class Sender:
    """A program that sends numbered messages, and connects again when its socket is gone."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        self._kind = kind
        self.sent = 0
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stops.set()
        self._thread.join()

    def _run(self) -> None:
        end = b"\n" if self._kind == "stream" else b""
        while not self._stops.is_set():
            with suppress(OSError), socket.socket(socket.AF_UNIX, KINDS[self._kind]) as program:
                program.settimeout(0.2)
                program.connect(str(self._path))
                while not self._stops.is_set():
                    program.send(b"%d%s" % (self.sent + 1, end))
                    self.sent += 1
                    time.sleep(_PACE)  # the pace of the program
            time.sleep(_PACE)  # until it connects again


def measure(kind: str, kills: int, *, held: bool = True, pair: list[EngineContainer], directory: Path) -> Loss:
    """Kill the receiving agent so often, and count."""
    source, sink = pair
    run_daemon: Callable[[Path, str, str], Nsbridged] = Nsbridged if held else OwnSocket
    routes = (
        f'[route.r]\n[route.r.agent.a]\ncontainer = "{source.spec}"\nsocket = {{ out = "/srv/s", type = "{kind}" }}\n'
        f'[route.r.agent.b]\ncontainer = "{sink.spec}"\nspool = {{ in = "/srv/in" }}\n'
    )
    chance = random.Random(kills)
    with run_daemon(directory, routes, 'evidence = "counter"') as daemon:
        daemon.wait_for("RUNNING")
        sender = Sender(source.rootfs / "srv/s", kind)
        try:
            for _ in range(kills):
                before = sender.sent
                wait_until(lambda: sender.sent >= before + 20, "messages are sent again", 30)  # noqa: B023
                time.sleep(chance.uniform(0, 0.02))  # until a strike, by chance
                _kill_agent(daemon)
            wait_until(lambda: daemon.agents()["r:a"]["state"] == "RUNNING", "it runs again")
        finally:
            sender.stop()
        bodies = _arrived(sink.rootfs / "srv/in", sender.sent)
    for file in (sink.rootfs / "srv/in").iterdir():
        file.unlink()
    return Loss(kills, sender.sent, sender.sent - len(set(bodies)), len(bodies) - len(set(bodies)))


def _kill_agent(daemon: Nsbridged) -> None:
    """Kill it as soon as it serves."""
    wait_until(lambda: daemon.agents()["r:a"]["state"] == "RUNNING", "it runs", 30)
    with suppress(ProcessLookupError):
        os.kill(daemon.agents()["r:a"]["pid"], signal.SIGKILL)


def _arrived(spool: Path, sent: int) -> list[bytes]:
    """Return the messages that have come, once all have, or none has for a while."""
    count, since = -1, time.monotonic()
    while time.monotonic() - since < _AT_REST and count < sent:
        found = len(os.listdir(spool))
        if found != count:
            count, since = found, time.monotonic()
        time.sleep(0.02)  # polls
    return [file.read_bytes() for file in sorted(spool.iterdir()) if not file.name.startswith(".")]


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Count what a kill of the agent loses of a Unix socket's messages.")
    parser.add_argument("--kills", type=int, default=100, help="kills of each")
    options = parser.parse_args()
    for kind, held in (("datagram", True), ("datagram", False), ("seqpacket", True), ("stream", True)):
        with tempfile.TemporaryDirectory(prefix="nsb-", ignore_cleanup_errors=True) as name:
            Path(name).chmod(0o711)
            with containers("unshare", Path(name)) as pair:
                loss = measure(kind, options.kills, held=held, pair=pair, directory=Path(name))
        print(f"{kind}, {'socket held by the supervisor' if held else 'socket of the agent'}: {loss}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
