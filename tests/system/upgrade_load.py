"""An upgrade from 0.1.0 under load, with messages pending in a source of each kind: none lost, none repeated.

    python -m tests.system.upgrade_load [--pending 10000] [--more 5000] [--kill]

The daemon of the former version takes messages while its sinks are stopped, until each source has that many pending.
Then programs write more, and meanwhile it ends (in order, or killed with all its agents) and this version starts on the
same state_dir and configuration.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import struct
import sys
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from nsbridge.agents.journal.journalfile import PAGE, VERSION
from nsbridge.agents.statefiles import journal_path
from tests.system.engines import IDLE, Program, UnshareContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_dead, wait_until
from tests.system.traffic import Receiver, Sent, send_all, visible
from tests.wheels import copy_commit, copy_repository, wheel

FORMER = "29fb9fa502988d2487deedcda61ff2f96c4548d0"  # the last commit of 0.1.0
ORDERS, ANSWERS = 0x61, 0x62  # keys: of the queue that is a source, of the one that is a sink
LIMIT = 600.0  # seconds for what depends on how many messages there are
KINDS = {  # by the source's kind: the ends of its route
    "spool": ('spool = { out = "/srv/spool.out" }', 'log = { in = "/srv/of.spool" }'),
    "log": ('log = { out = "/srv/log" }', f"queue = {{ in = {{ key = {ANSWERS} }}, create = true }}"),
    "file": ('file = { out = "/srv/file" }', 'log = { in = "/srv/of.file" }'),
    "queue": (f"queue = {{ out = {{ key = {ORDERS} }}, create = true }}", 'spool = { in = "/srv/of.queue" }'),
}


def body(number: int) -> bytes:
    return b"message %06d" % number


class Former(Nsbridged):
    """The daemon of the former version; its modules are in `modules`, and the wheel names its `program`."""

    modules: Path
    journals = VERSION

    def start(self) -> None:
        """Start it with its own modules."""
        os.environ["PYTHONPATH"] = str(self.modules)
        try:
            super().start()
        finally:
            del os.environ["PYTHONPATH"]


def prepare(place: Path) -> None:
    """Build the former version's wheel and unpack it; where history is missing (an sdist), it is this version's."""
    tree, out, modules = place / "tree", place / "out", place / "modules"
    tree.mkdir()
    if copy_commit(FORMER, tree):
        Former.journals = 1
    else:
        copy_repository(tree)
    with zipfile.ZipFile(wheel(tree, out)) as archive:
        archive.extractall(modules)
    entry = next(modules.glob("*.dist-info/entry_points.txt")).read_text(encoding="utf-8")
    Former.program = (re.findall(r"^nsbridged = (\S+):main", entry, re.MULTILINE)[0],)
    Former.modules = modules


class Scene:
    """Two containers, a route for each kind of source, and what its program has written."""

    def __init__(self, place: Path, one: UnshareContainer, two: UnshareContainer, window: int) -> None:
        self.one, self.two = one, two
        self.routes = "".join(
            f'[route.{kind}]\nwindow = {{ messages = {window}, bytes = "16MB" }}\n'
            f'[route.{kind}.agent.from]\ncontainer = "{one.spec}"\n{source}\n'
            f'[route.{kind}.agent.to]\ncontainer = "{two.spec}"\n{sink}\n'
            for kind, (source, sink) in KINDS.items()
        )
        self.daemon: Nsbridged = Former(place, self.routes)
        self.sinks_run = False
        (one.rootfs / "srv/log").touch()

    def taken(self, kind: str) -> int:
        """Return how many messages of a source were taken."""
        flow = self.daemon.flow(f"{kind}:from")
        return int(flow["delivered"] + flow["pending"])

    def write(self, kind: str, numbers: range) -> None:
        """Write messages as the container's program does."""
        srv = self.one.rootfs / "srv"
        if kind == "queue":
            send_all(self.one, ORDERS, [Sent(1, body(number)) for number in numbers])
        elif kind == "log":
            with (srv / "log").open("ab", buffering=0) as log:
                for number in numbers:
                    log.write(body(number) + b"\n")
        elif kind == "spool":
            for number in numbers:
                (srv / ".part").write_bytes(body(number))
                (srv / ".part").rename(srv / f"spool.out/{number:06d}")
        else:
            for number in numbers:
                (srv / "file").write_bytes(body(number))
                wait_until(lambda: self._has_file(number), f"file {number} is taken", LIMIT)  # noqa: B023

    def _has_file(self, number: int) -> bool:
        """True if the content was taken: the next one would replace it. Once sinks run, it must also have arrived.

        Messages between the two are counted on both sides, so `taken` is exact only while sinks are stopped.
        """
        if self.sinks_run:
            return (self.two.rootfs / "srv/of.file").stat().st_size == (number + 1) * len(body(number) + b"\n")
        return self.taken("file") == number + 1

    def received(self, kind: str, count: int, receiver: Receiver) -> list[bytes]:
        """Return what arrived across the source of that kind, in order, once `count` messages have."""
        srv = self.two.rootfs / "srv"
        if kind == "log":
            return [message.body for message in receiver.messages(LIMIT)]
        if kind == "queue":
            wait_until(lambda: len(visible(srv / "of.queue")) >= count, "the spool has all", LIMIT)
            return [(srv / "of.queue" / name).read_bytes() for name in sorted(visible(srv / "of.queue"))]
        log = srv / f"of.{kind}"
        wait_until(lambda: log.read_bytes().count(b"\n") >= count, f"{log} has all", LIMIT)
        return log.read_bytes().splitlines()


def upgrade(place: Path, pending: int, more: int, kill: bool) -> dict[str, dict[str, int]]:
    """Do it all, after `prepare`; return (lost, repeated, displaced, pending at the upgrade) by kind of source."""
    with containers(place) as (one, two):
        scene = Scene(place, one, two, 2 * (pending + more))
        with scene.daemon as former, ExitStack() as stack:
            former.wait_for("RUNNING", with_senders=False)
            for kind in KINDS:
                former.call("stop", names=[f"{kind}:to"])
            former.wait_for("STOPPED", *(f"{kind}:to" for kind in KINDS))  # else one may be counted on both sides
            for kind in KINDS:
                scene.write(kind, range(pending))
            for kind in KINDS:
                wait_until(lambda: scene.taken(kind) == pending, f"{kind}: all are pending", LIMIT)  # noqa: B023
            page = Path(journal_path(f"{place}/state", "spool:from", "out")).read_bytes()[:PAGE]
            assert struct.unpack_from("<8sI", page)[1] == Former.journals, "that version ran"
            held = {kind: former.flow(f"{kind}:from")["pending"] for kind in KINDS}
            scene.sinks_run = True  # once the next daemon has started
            receiver = stack.enter_context(Receiver(two, ANSWERS, pending + more))
            load = [started(partial(scene.write, kind, range(pending, pending + more))) for kind in KINDS]
            end(former, kill)
            with Nsbridged(place, scene.routes) as present:
                scene.daemon = present
                got = {kind: scene.received(kind, pending + more, receiver) for kind in KINDS}
                for thread in load:
                    thread.join(LIMIT)
                for kind in KINDS:
                    wait_until(lambda: present.flow(f"{kind}:from")["pending"] == 0, "all is confirmed")  # noqa: B023
                got |= {kind: scene.received(kind, pending + more, receiver) for kind in KINDS if kind != "log"}
    return {kind: judged(messages, pending + more) | {"pending": held[kind]} for kind, messages in got.items()}


def started(writer: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=writer)
    thread.start()
    return thread


def end(daemon: Nsbridged, kill: bool) -> None:
    """End the daemon in order, or kill it and all agents at once."""
    if not kill:
        assert daemon.stop() == 0
        return
    pids = [daemon.pid, *daemon.processes()]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert daemon.process is not None
    daemon.process.wait()
    for pid in pids[1:]:
        wait_dead(pid)


def judged(messages: list[bytes], count: int) -> dict[str, int]:
    sent = [body(number) for number in range(count)]
    counted = Counter(messages)
    return {
        "lost": sum(message not in counted for message in sent),
        "repeated": sum(counted.values()) - len(counted),
        "displaced": sum(a != b for a, b in zip(messages, sent, strict=False)),
    }


@contextmanager
def containers(place: Path) -> Iterator[tuple[UnshareContainer, UnshareContainer]]:
    with ExitStack() as stack:
        made = []
        for _ in range(2):
            container = UnshareContainer(Program(IDLE), place)
            stack.callback(container.delete)
            container.start()
            made.append(container)
        yield made[0], made[1]


def main() -> int:
    """Run the command; return 1 if a message was lost, repeated or displaced."""
    parser = argparse.ArgumentParser(description="An upgrade from the former version, under load.")
    parser.add_argument("--pending", type=int, default=10_000)
    parser.add_argument("--more", type=int, default=5_000)
    parser.add_argument("--kill", action="store_true", help="kill the former daemon and its agents")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nsb-upgrade-", ignore_cleanup_errors=True) as place:
        prepare(Path(place))
        found: dict[str, Any] = upgrade(Path(place), options.pending, options.more, options.kill)
    for kind, numbers in found.items():
        print(f"{kind}: " + ", ".join(f"{name} {number}" for name, number in numbers.items()))
    return int(any(numbers[bad] for numbers in found.values() for bad in ("lost", "repeated", "displaced")))


if __name__ == "__main__":
    sys.exit(main())
