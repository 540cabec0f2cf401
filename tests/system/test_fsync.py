"""Option `fsync = true`: an agent's message is on the disk before it is sent, by one sync for each batch."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import LIMIT, tool, wait_until
from tests.system.test_relay import route
from tests.system.traffic import Sent, send_all, wait_for_files

COUNT = 2000


@contextmanager
def traced(pid: int, output: Path) -> Iterator[None]:
    """Trace its syncs and sends, one a line."""
    calls = "trace=fdatasync,syncfs,sendto,renameat2"
    command = [tool("strace"), "-f", "-q", "-e", calls, "-o", str(output), "-p", str(pid)]
    with subprocess.Popen(command) as strace:
        try:
            wait_until(lambda: f"TracerPid:\t{strace.pid}\n" in Path(f"/proc/{pid}/status").read_text(), "it is traced")
            yield
        finally:
            strace.send_signal(signal.SIGINT)
            strace.wait(LIMIT)


def calls(output: Path) -> list[str]:
    """Return the names of the system calls that ended, in order; greetings and confirmations are SENDTO with size."""
    lines = output.read_text(encoding="utf-8").splitlines()
    return [line.split()[1].partition("(")[0] for line in lines if "unfinished" not in line and "(" in line]


def test_with_fsync_packets_follow_a_sync_and_batches_share_one(tmp_path: Path, runc_container: Factory) -> None:
    """The source syncs its journal before it sends messages, the sink the files and its journal before it confirms."""
    web, legacy = runc_container(), runc_container()
    routes = route(web.spec, legacy.spec).replace("[route.r]\n", "[route.r]\nfsync = true\n", 1)
    messages = [Sent(1, b"%d" % number) for number in range(COUNT)]
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        source, sink = daemon.agents()["r:queue"]["pid"], daemon.agents()["r:files"]["pid"]
        with traced(source, tmp_path / "source"), traced(sink, tmp_path / "sink"):
            send_all(legacy, 0x52, messages)
            wait_for_files(web.rootfs / "srv/in", COUNT)
            wait_until(lambda: daemon.flow("r:queue")["pending"] == 0, "all is confirmed")
    at_source, at_sink = calls(tmp_path / "source"), calls(tmp_path / "sink")
    assert 0 < at_source.count("fdatasync") < COUNT / 4, "a batch shares one"
    synced = False
    for call in at_sink:
        if call == "renameat2":
            synced = False
        elif call == "syncfs":
            synced = True
        elif call == "sendto":
            assert synced, "a confirmation went before the files were on the disk"
    assert 0 < at_sink.count("syncfs") < COUNT / 4
