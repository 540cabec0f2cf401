"""Random and mutated input into everything that reads what somebody hostile may have written.

    python -m tests.fuzz [--count N] [--seed S]

agent        packets of the other agent: parsed, taken by a session with real journals, handed over, answered
supervisor   datagrams and the shared page of an agent: heard by its manager, shown by status
successor    journals that a compromised agent has left: read, opened and used; a tenth of the inputs
control      lines of a caller: parsed, and answered by the real methods that only look

Whatever comes is taken or refused (WireError, NsbridgeError, UsageError); anything else that is raised is a bug, and so
is a call that takes long or memory that grows. The long form is `make fuzz`; the suite has a short one. Its own mutator
is used and not a fuzzer with coverage, so that it runs wherever the tests do and a seed repeats it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from nsbridge.agents import control, wire
from nsbridge.agents.fork import Child
from nsbridge.agents.incoming import Incoming
from nsbridge.agents.journal import sinkjournal
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.outgoing import Outgoing
from nsbridge.agents.session import Session
from nsbridge.agents.wire import Hello, Message, Run, WireError
from nsbridge.config.errors import NsbridgeError
from nsbridge.config.load import load
from nsbridge.config.schema import Window
from nsbridge.supervisor.control.answer import Answer
from nsbridge.supervisor.control.api import Api
from nsbridge.supervisor.control.lettercounts import LetterCounts
from nsbridge.supervisor.control.request import parse
from nsbridge.supervisor.control.status import route_status
from nsbridge.supervisor.health.measuring import Learn, Measurer
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.process import AgentProcess, Channel
from nsbridge.supervisor.lifecycle.table import Stage, State
from nsbridge.supervisor.log.log import open_log
from nsbridge.supervisor.supervisor import Supervisor
from tests.fuzz_journals import JournalTarget
from tests.memory_store import hand_over_one

WINDOW = Window(messages=16, bytes=1 << 16)
NONCE = 77
SLOW = 2.0  # seconds that no single input may take, on a machine that does other things too
GROWTH = 48 << 10  # KiB of memory that a whole run may take beyond its first tenth
_NUMBERS = (0, 1, 2, 3, 255, 1 << 16, 1 << 31, (1 << 32) - 1, wire.MAX_SEQ, wire.MAX_SEQ + 1, 1 << 63, (1 << 64) - 1)
_ROUTE = """
[daemon]
state_dir = "{0}/state"
control = {{ path = "{0}/state/control.sock" }}
log = {{ file = "{0}/log", level = "error", max_bytes = "1MB", backups = 1 }}
[route.r.agent.a]
container = "host"
spool = {{ out = "/nonexistent/out", in = "/nonexistent/in" }}
[route.r.agent.b]
container = "host"
queue = {{ in = {{ key = 0x51 }}, out = {{ key = 0x52 }} }}
"""


class Mutator:
    """Makes input out of seeds: some as they are, most changed somewhere, some of nothing but chance."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def change(self, data: bytes) -> bytes:
        """Return the bytes with some exchanged, put in, left out or repeated."""
        chance, changed = self.chance, bytearray(data)
        for _ in range(chance.choice((0, 1, 1, 2, 5))):
            at = chance.randrange(len(changed) + 1)
            match chance.randrange(5):
                case 0:
                    changed[at : at + 1] = chance.randbytes(1)
                case 1:
                    changed[at : at + 8] = chance.choice(_NUMBERS).to_bytes(8, "little")
                case 2:
                    del changed[at : at + chance.randrange(1, 16)]
                case 3:
                    changed[at:at] = changed[: chance.randrange(1, 64)]
                case _:
                    changed[at:at] = chance.randbytes(chance.randrange(1, 16))
        return bytes(changed) if chance.randrange(20) else chance.randbytes(chance.randrange(200))


class AgentTarget:
    """A session in the middle of its life, over journals as an agent has them; a WireError ends it, as there."""

    def __init__(self, directory: Path, mutator: Mutator) -> None:
        self._mutator = mutator
        self._source = open_source(str(directory / "out"), WINDOW.messages + 3, 1 << 20, print)
        self._sink = sinkjournal.open_sink(str(directory / "in"), print)
        self._restart()

    def _restart(self) -> None:
        self._session = Session(NONCE, Outgoing(self._source, WINDOW), Incoming(self._sink, WINDOW))
        self._session.next_packet()
        if self._mutator.chance.randrange(4):
            self._session.receive(wire.pack_hello(Hello(9, NONCE, self._sink.epoch or 1, self._sink.handed, 0, 0)))

    def _frame(self) -> bytes:
        chance, sink, source = self._mutator.chance, self._sink, self._source
        match chance.randrange(4):
            case 0:
                confirmed = chance.choice((0, sink.handed, sink.handed + 5, *_NUMBERS))
                handed = chance.choice((0, source.taken, source.confirmed, *_NUMBERS))
                epochs = (chance.choice((0, 1, sink.epoch)), chance.choice((0, source.epoch, 5)))
                return wire.pack_hello(
                    Hello(
                        chance.getrandbits(3),
                        chance.choice((0, NONCE)),
                        epochs[0],
                        confirmed % (1 << 64),
                        epochs[1],
                        handed % (1 << 64),
                    )
                )
            case 1:
                return wire.pack_ack(source.epoch, chance.choice((source.confirmed, source.taken, *_NUMBERS)))
            case 2:
                first = sink.handed + chance.choice((1, 1, 1, 0, 2, *_NUMBERS))
                bodies = [chance.randbytes(chance.choice((0, 1, 100))) for _ in range(chance.randrange(1, 6))]
                run = Run(sink.epoch, first % (1 << 64), chance.choice((0, 1, -1, 1 << 40)), bodies)
                return b"".join(wire.pack_run(run))
            case _:
                body = chance.randbytes(chance.choice((0, 1, 100, 3000)))
                cut = chance.randrange(len(body) + 1)
                seq = sink.handed + chance.choice((1, 1, 1, 2, 3))
                message = Message(chance.choice((0, 1, -1, 1 << 40)), body)
                begin = wire.pack_data_header(sink.epoch, seq, message, 0, cut) + body[:cut]
                rest = wire.pack_data_header(sink.epoch, seq, message, cut, len(body) - cut) + body[cut:]
                return begin + (rest if cut < len(body) else b"")

    def run(self) -> None:
        """Try one packet."""
        packet = b"".join(self._frame() for _ in range(self._mutator.chance.randrange(1, 4)))
        try:
            self._session.receive(self._mutator.change(packet))
        except WireError:
            self._restart()
        self._serve()

    def _serve(self) -> None:
        """Serve as the agent does then: hand over, take some more, send; it comes to an end."""
        incoming, outgoing = self._session.incoming, self._session.outgoing
        assert incoming is not None
        assert outgoing is not None
        assert sum(len(run.bodies) for run in incoming.waiting) <= WINDOW.messages
        assert len(incoming._partial) < wire.MAX_MESSAGE
        while incoming.waiting and self._mutator.chance.randrange(50):
            hand_over_one(incoming)
        if outgoing.has_room() and self._mutator.chance.randrange(2):
            self._source.append(Message(1, self._mutator.chance.randbytes(50)))
        for _ in range(64):
            if not self._session.next_packet():
                return
        raise AssertionError("a session that sends without end")


class SupervisorTarget:
    """Two managed agents that say what they like, and a page each that has anything in it."""

    _SEEDS = (
        b'{"report": "ready", "ns_inode": 4026531840, "uid": 0, "gid": 0}',
        b'{"report": "drained"}',
        b'{"report": "log", "level": "warning", "text": "a line \\u001b[2J"}',
        b'{"report": "error", "text": "its last words"}',
        b'{"report": ' + b"[" * 50 + b"]" * 50 + b"}",
    )

    def __init__(self, supervisor: Supervisor, mutator: Mutator) -> None:
        self._mutator = mutator
        self._route = supervisor._roster.routes["r"]
        for agent in self._route.agents:
            agent.process = AgentProcess(cast(Child, _NoChild()), cast(Channel, _NoChannel()), 0.0)

    def run(self) -> None:
        """Try one datagram, and now and then a page that is shown."""
        agent: ManagedAgent = self._mutator.chance.choice(self._route.agents)
        assert agent.process is not None
        agent.state = self._mutator.chance.choice((State.STARTING, State.RUNNING, State.STOPPING))
        agent.process.stage = Stage.ENTERING
        agent.report_received(control.parse(self._mutator.change(self._mutator.chance.choice(self._SEEDS))))
        if not self._mutator.chance.randrange(50):
            page = agent.scoreboard._page
            page[: len(page)] = self._mutator.chance.randbytes(len(page))
            agent.state = State.RUNNING
            json.dumps(route_status(self._route, list(self._route.agents), LetterCounts("/nonexistent").exact)).encode()


class _NoChild:
    pid = 1 << 22

    def kill(self) -> None:
        """Do nothing: there is no process."""


class _NoChannel:
    def send(self, order: str) -> None:
        """Drop the order: nobody reads it."""


class ControlTarget:
    """A caller who may only look."""

    _SEEDS = (
        {"id": 1, "method": "status", "params": {"names": ["r", "r:a", "all", "nobody"]}},
        {"id": "x", "method": "tail", "params": {"count": 5, "name": "r:a", "follow": True}},
        {"id": 2, "method": "events", "params": {"count": -1, "name": "r"}},
        {"id": 3, "method": "inspect", "params": {"name": "r:b"}},
        {"id": 4, "method": "dead_list", "params": {"names": []}},
        {"id": 5, "method": "dead_show", "params": {"id": "r:a/1"}},
        {"id": 6, "method": "version"},
        {"id": 7, "method": "stop", "params": {"names": ["r"]}},
        {"id": 8, "method": "dead_drop", "params": {"ids": ["r:a/00-1"]}},
    )
    _VALUES: tuple[Any, ...] = (
        None,
        True,
        -1,
        1 << 70,
        1.5,
        "",
        "r",
        [],
        ["r", 1, None],
        {},
        {"a": []},
        "\udcff\n",
        [[]] * 9,
    )
    _METHODS = frozenset(str(seed["method"]) for seed in _SEEDS)

    def __init__(self, supervisor: Supervisor, mutator: Mutator) -> None:
        self._mutator = mutator
        self._api = api_of(supervisor)

    def run(self) -> None:
        """Try one line."""
        chance = self._mutator.chance
        request = json.loads(json.dumps(chance.choice(self._SEEDS)))
        for key in (*request["params"],) if "params" in request else ():
            if not chance.randrange(3):
                request["params"][key] = chance.choice(self._VALUES)
        line = json.dumps(request).encode()
        try:
            _, method, params = parse(self._mutator.change(line) if chance.randrange(2) else line)
            if method in self._METHODS:
                self._api.call(method, params, cast(Answer, _Heard()))
        except NsbridgeError as error:
            json.dumps(str(error))


class _Heard:
    """In the place of an Answer: what it is given must be such as JSON can say."""

    is_open = True

    def item(self, value: object) -> None:
        """Take an item of a stream."""
        json.dumps(value)

    result = item

    def error(self, error: NsbridgeError) -> None:
        """Take an error instead of a result."""
        json.dumps(str(error))

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back at once: the caller has gone."""
        callback()

    def follow(self) -> None:
        """Accept the follower: there is room for it."""

    def by_child(self, work: Callable[[], object], otherwise: object = None) -> None:
        """Work it out here, so that what is raised is seen."""
        self.result(work())


class _NoMeasurer(Measurer):
    """There is nothing to be measured."""

    def ask(self, pids: Iterable[int], learn: Learn) -> None:
        """Answer at once."""
        learn(dict.fromkeys(pids))


@contextmanager
def supervisor_at(directory: Path) -> Iterator[Supervisor]:
    """Yield a supervisor that has a route and does not run."""
    (directory / "config.toml").write_text(_ROUTE.format(directory), encoding="utf-8")
    (directory / "state").mkdir()
    config = load(str(directory / "config.toml"))
    log = open_log(config.daemon.log)
    supervisor = Supervisor(config, log)
    for route in config.routes:
        supervisor._roster.routes[route.name] = supervisor._make_route(route)
    try:
        yield supervisor
    finally:
        supervisor._roster.close()
        supervisor._services.arrivals.close()
        supervisor.loop.close()
        log.close()


def api_of(supervisor: Supervisor) -> Api:
    """Return the methods that its control socket would call."""
    check = supervisor._health
    check.measurer = _NoMeasurer(supervisor.loop)
    return Api(
        supervisor._services, supervisor._roster, supervisor._orders, supervisor._reloader, check, supervisor.stop
    )


def fuzz(directory: Path, count: int, seed: int) -> dict[str, float]:
    """Try `count` inputs for each target; return the seconds that each took. AssertionError, or what was raised, for a
    bug.
    """
    took = {}
    with supervisor_at(directory) as supervisor:
        took["agent"] = _many(AgentTarget(directory, Mutator(random.Random(seed))).run, count)
        took["supervisor"] = _many(SupervisorTarget(supervisor, Mutator(random.Random(seed))).run, count)
        took["successor"] = _many(JournalTarget(directory, random.Random(seed), _NUMBERS).run, count // 10)
        took["control"] = _many(ControlTarget(supervisor, Mutator(random.Random(seed))).run, count)
    return took


def _many(run: Callable[[], None], count: int) -> float:
    started, memory, slowest = time.monotonic(), 0, 0.0
    for number in range(count):
        before = time.thread_time()
        run()
        slowest = max(slowest, time.thread_time() - before)
        if number == count // 10:
            memory = _memory()
    assert slowest < SLOW, f"one input took {slowest:.1f} s"
    assert _memory() - memory < GROWTH, f"{_memory() - memory} KiB more"
    return time.monotonic() - started


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000, help="inputs for each target (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for name, seconds in fuzz(Path(directory), options.count, options.seed).items():
            print(f"{name}: {options.count} inputs in {seconds:.1f} s, nothing but refusals; {_memory()} KiB at most")


if __name__ == "__main__":
    main()
