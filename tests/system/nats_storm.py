"""Two hosts joined by a cluster of three nats-servers, under kills and pauses, with an audit of every message.

Container A has two queues, container B two logs. Each host's daemon joins its container with the cluster:

    A queue → daemon 1 → JetStream → daemon 2 → B log
    A queue ← daemon 1 ← JetStream ← daemon 2 ← B log

One victim at a time: an agent, a supervisor, a server, a server or an agent that is paused (SIGSTOP) for longer than
the duplicate window of the streams. `make nats-storm` is the long form.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from nsbridge.config.errors import NsbridgeError
from tests.system import nats_stores
from tests.system.engines import IDLE, Program, UnshareContainer
from tests.system.nats_servers import PROGRAM, NatsClient, NatsServer, cluster, version
from tests.system.nsbridged import Nsbridged
from tests.system.queue_program import FRAME
from tests.system.room import wait_until
from tests.system.traffic import Receiver, in_ipc_of

WINDOW = 2.0  # seconds: the duplicate window of the streams
_WITHIN = 120.0  # seconds for what follows a strike
_CATCHES_UP = 40.0  # seconds, for a server that was away
_LENGTH = struct.Struct(">I")
_VICTIMS = ("agent",) * 12 + ("supervisor",) * 4 + ("server",) * 4 + ("paused server", "paused agent")

HOST_1 = """
[route.east.agent.a]
container = "{a}"
queue = {{ out = {{ key = 0x71 }}, in = {{ key = 0x72, type = 5 }}, create = true, mode = "0666" }}
[route.east.agent.far]
container = "host"
[route.east.agent.far.nats]
servers = {servers}
in = {{ subject = "s.ab" }}
out = {{ stream = "BA", subject = "s.ba", durable = "east" }}
"""
HOST_2 = """
[route.west.agent.b]
container = "{b}"
log = {{ out = "/srv/out.log", in = "/srv/in.log", framing = "length" }}
[route.west.agent.far]
container = "host"
[route.west.agent.far.nats]
servers = {servers}
in = {{ subject = "s.ba" }}
out = {{ stream = "AB", subject = "s.ab", durable = "west" }}
"""


def bodies(which: bytes, count: int) -> list[bytes]:
    """Return messages that are all different, of different lengths."""
    return [b"%s %d %s" % (which, number, b"x" * (number % 200)) for number in range(count)]


def framed(messages: Sequence[bytes]) -> bytes:
    """Return messages as a log has them."""
    return b"".join(_LENGTH.pack(len(body)) + body for body in messages)


class Storm:
    """The two hosts, the cluster, and what is done to them."""

    def __init__(self, base: Path, victims: Sequence[str], messages: int, seed: int, store: str = "") -> None:
        """Prepare; `store` is more of the configuration of the servers' storage."""
        self._base, self._victims, self._messages, self._store = base, victims, messages, store
        self._chance = random.Random(seed)
        self.done: Counter[str] = Counter()
        self._daemons: list[Nsbridged] = []
        self._servers: Sequence[NatsServer] = ()
        self._client: NatsClient
        self._behind: set[str | None] = set()  # servers that lack messages

    def run(self) -> str:
        """Run it; return what was done. AssertionError if a message was lost, repeated or out of order."""
        with ExitStack() as cleanup:
            self._servers = cleanup.enter_context(cluster(self._base / "nats", store=self._store))
            self._client = cleanup.enter_context(NatsClient(*(server.url for server in self._servers)))
            for stream, subject in (("AB", "s.ab"), ("BA", "s.ba")):
                self._client.add_stream(stream, [subject], num_replicas=3, duplicate_window=WINDOW, discard="new")
            one, two = (self._container(cleanup, name) for name in ("a", "b"))
            urls = str([server.url for server in self._servers]).replace("'", '"')
            for name, routes in (("1", HOST_1), ("2", HOST_2)):
                where = self._base / f"host{name}"
                where.mkdir()
                daemon = Nsbridged(where, routes.format(a=one.spec, b=two.spec, servers=urls))
                self._daemons.append(cleanup.enter_context(daemon))
            for daemon in self._daemons:
                daemon.wait_for("RUNNING")
            try:
                return self._storm(one, two)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self._about()}") from None

    def _about(self) -> str:
        """Return what the daemons and the servers' disks have, for a storm that failed."""
        lines = [f"after {dict(self.done)}"]
        with suppress(NsbridgeError):
            lines += [str(flow) for daemon in self._daemons for flow in self._flows(daemon)]
        for stream in ("AB", "BA"):
            lines += nats_stores.differences(self._base / "nats", stream)
        return "\n".join(lines)

    def _container(self, cleanup: ExitStack, name: str) -> Any:
        where = self._base / name
        where.mkdir()
        made = UnshareContainer(Program(IDLE), where)
        cleanup.callback(made.delete)
        made.create()
        made.start()
        return made

    def _storm(self, one: Any, two: Any) -> str:
        begun = time.monotonic()
        east, west = bodies(b"east", self._messages // 2), bodies(b"west", self._messages // 2)
        out, in_ = two.rootfs / "srv/out.log", two.rootfs / "srv/in.log"
        wait_until(out.exists, "the log is made")
        with Receiver(one, 0x72, len(west)) as receiver, in_ipc_of(one, "put", str(0x71)) as sender:
            assert sender.stdin is not None
            step = max(len(east) // (len(self._victims) + 1), 1)
            for number, victim in enumerate((*self._victims, "")):
                first, last = number * step, (number + 1) * step if victim else len(east)
                with _no_longer_than(_WITHIN, "the queue takes messages"):
                    for body in east[first:last]:
                        sender.stdin.write(FRAME.pack(7, len(body)) + body)
                    sender.stdin.flush()
                with out.open("ab") as file:
                    file.write(framed(west[first:last]))
                if victim:
                    self._strike(victim)
            sender.stdin.close()
            wait_until(lambda: in_.stat().st_size >= len(framed(east)), "all have come to B", _WITHIN)
            received = [body for _, body in receiver.messages(_WITHIN)]
        assert_equal("A → B", in_.read_bytes(), framed(east), east)
        assert_equal("B → A", framed(received), framed(west), west)
        doubt = sum(flow["in_doubt"] for daemon in self._daemons for flow in self._flows(daemon))
        assert doubt == 0, f"{doubt} in doubt"
        took = time.monotonic() - begun
        return f"{2 * len(east)} messages, {dict(self.done)}, {took:.0f} s: 0 lost, 0 repeated, in order, 0 in doubt"

    @staticmethod
    def _flows(daemon: Nsbridged) -> list[dict[str, Any]]:
        return [flow for route in daemon.call("status")["routes"] for flow in route["flows"]]

    def _strike(self, victim: str) -> None:
        time.sleep(self._chance.random() * 0.3)  # so that strikes fall everywhere
        strikes: dict[str, Callable[[], None]] = {
            "agent": self._kill_agent,
            "supervisor": self._kill_supervisor,
            "server": self._kill_server,
            "paused server": lambda: self._pause(self._next_server().pid),
            "paused agent": lambda: self._with_agent(self._pause),
        }
        strikes[victim]()
        self.done[victim] += 1
        print(f"{time.strftime('%H:%M:%S')} {sum(self.done.values())}: {victim}", file=sys.stderr, flush=True)

    def _with_agent(self, do: Callable[[int], None]) -> None:
        daemon = self._chance.choice(self._daemons)
        agents = [agent["pid"] for agent in daemon.agents().values() if agent["pid"]]
        with suppress(ProcessLookupError):
            do(self._chance.choice(agents or [daemon.pid]))

    def _kill_agent(self) -> None:
        self._with_agent(lambda pid: os.kill(pid, signal.SIGKILL))

    def _kill_supervisor(self) -> None:
        daemon = self._chance.choice(self._daemons)
        daemon.kill()
        daemon.start()

    def _kill_server(self) -> None:
        """Kill one, and start it again."""
        server = self._next_server()
        server.kill()
        time.sleep(self._chance.random())  # the time that it is away
        server.start()
        server.wait()

    def _next_server(self) -> NatsServer:
        """Choose a server, once all three have all messages: only one is away at a time."""
        try:
            wait_until(self._is_whole, "the cluster is whole", _CATCHES_UP)
        except AssertionError:  # nats-server 2.10 may leave a server behind: its operator would start that again
            for server in self._servers:
                if server.name in self._behind:
                    self._restart(server)
            wait_until(self._is_whole, "the cluster is whole", _WITHIN)
        return self._chance.choice(self._servers)

    def _restart(self, server: NatsServer) -> None:
        server.kill()
        server.start()
        server.wait()
        self.done["server behind"] += 1

    def _is_whole(self) -> bool:
        with suppress(Exception):
            return all(self._has_all(stream) for stream in ("AB", "BA"))
        return False

    def _has_all(self, stream: str) -> bool:
        about = self._client.run(self._client.js.stream_info(stream)).cluster
        others = (about.replicas if about and about.leader else None) or []
        self._behind = {one.name for one in others if not one.current}
        return len(others) == len(self._servers) - 1 and not self._behind

    @staticmethod
    def _pause(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(WINDOW + 1)  # longer than the window is remembered
        finally:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def _no_longer_than(seconds: float, what: str) -> Iterator[None]:
    """Raise AssertionError where the block waits, after so many seconds."""

    def late(*_about: object) -> None:
        raise AssertionError(f"not within {seconds:.0f} s: {what}")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assert_equal(way: str, got: bytes, wanted: bytes, messages: Sequence[bytes]) -> None:
    """Raise AssertionError, with what is wrong, if the two logs differ."""
    if got == wanted:
        return
    found, at = [], 0
    while at < len(got):
        length = _LENGTH.unpack_from(got, at)[0]
        found.append(got[at + 4 : at + 4 + length])
        at += 4 + length
    counts = Counter(found)
    lost = [body for body in messages if not counts[body]]
    repeated = [body for body, count in counts.items() if count > 1]
    raise AssertionError(
        f"{way}: {len(lost)} lost {lost[:3]}, {len(repeated)} repeated {repeated[:3]}, or out of order"
    )


def chosen(count: int, seed: int) -> list[str]:
    """Return so many victims, by chance."""
    return random.Random(seed).choices(_VICTIMS, k=count)


def main() -> int:
    """Run the long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a directory for everything, which stays")
    parser.add_argument("--server", help="the nats-server to run, in place of the installed one")
    parser.add_argument("--store", default="", help="more of the servers' jetstream { }, like 'sync_interval: always'")
    words = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that it ends what it has started
    if words.server is not None:
        os.environ[PROGRAM] = words.server
    print(f"nats-server {version()} {words.store}", flush=True)
    with tempfile.TemporaryDirectory(prefix="nsb-nats-", ignore_cleanup_errors=True) as directory:
        base = words.keep or Path(directory)
        base.mkdir(parents=True, exist_ok=True)
        base.chmod(0o711)
        print(Storm(base, chosen(words.kills, words.seed), words.messages, words.seed, words.store).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
