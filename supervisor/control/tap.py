"""`tap` over the control socket: the messages that agents hand over, live, as copies (agents/tap.py).

A child of the supervisor reads the copies and writes them to the caller, because a message's body must not get into
the supervisor's memory, which its agents inherit. It shares the memory of the tapped agents and no other. While the
caller does not read, the child waits, and what it misses is counted. It ends with the caller, with the supervisor, when
it has shown `count` messages, and when all tapped agents are gone from the configuration.

An agent copies messages only while a tap counts in its TAPPED cell. After the last tap, the copies are wiped.
"""

from __future__ import annotations

import base64
import json
import os
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from nsbridge.agents import scoreboard
from nsbridge.agents.loop import Loop
from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.agents.tap import Tapped, TapReader
from nsbridge.config.errors import NsbridgeError, UsageError
from nsbridge.supervisor.control.answer import Answer
from nsbridge.supervisor.control.errands import Job, write_all
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.log.log import timestamp
from nsbridge.supervisor.routes.route import Route

EVERY = 0.05  # seconds between two looks at the copies
WIPE_AFTER = 1.0  # seconds; an agent may be writing a last copy when its tap ends
_NICE = 10  # the child leaves the processors to the agents

Select = Callable[[dict[str, object]], list[tuple[Route, list[ManagedAgent]]]]
Method = Callable[[dict[str, object], Answer], None]


class Flow(NamedTuple):
    """One direction that is tapped: the names of its agents, and the memory of the one that hands over.

    The reader begins where the agent was when it was made: nothing of what follows is left out.
    """

    source: str
    sink: str
    page: Scoreboard
    reader: TapReader


class TapApi:
    """The method `tap`. `select` finds routes and agents by `names`, as for `status`."""

    def __init__(self, loop: Loop, select: Select) -> None:
        self._loop = loop
        self._select = select
        self._taps: dict[int, int] = {}  # how many there are, by the id of a scoreboard
        self.methods: dict[str, Method] = {"tap": self._tap}

    def _tap(self, params: dict[str, object], answer: Answer) -> None:
        name, count = params.get("name"), params.get("count")
        if (
            not isinstance(name, str)
            or not name
            or not isinstance(count, int | None)
            or (count is not None and count < 1)
        ):
            raise UsageError("tap needs a name (string), and count is a number from 1 on")
        flows = _flows(name, self._select({"names": [name]}))
        for flow in flows:
            self._count(flow.page, 1)

        def gone() -> None:
            for flow in flows:
                self._count(flow.page, -1)

        def job(request_id: object) -> Job:
            return Job(partial(_stream, request_id, flows, count), None, partial(_lent, flows), gone)

        answer.by_stream(job)

    def _count(self, page: Scoreboard, change: int) -> None:
        """Have one more tap on an agent, or one less."""
        count = self._taps.get(id(page), 0) + change
        self._taps[id(page)] = count
        if not count:
            del self._taps[id(page)]
            self._loop.call_later(WIPE_AFTER, lambda: self._wipe(page))
        if change > 0 or page.cells[scoreboard.TAPPED]:  # else the agent is gone for good, and all taps are to end
            page.cells[scoreboard.TAPPED] = count

    def _wipe(self, page: Scoreboard) -> None:
        if id(page) not in self._taps:
            page.wipe_tap()


def _flows(name: str, chosen: list[tuple[Route, list[ManagedAgent]]]) -> list[Flow]:
    """Return the directions whose messages enter the containers of the chosen agents. Raise NsbridgeError."""
    flows = [
        Flow(source.config.name, sink.config.name, sink.scoreboard, TapReader(sink.scoreboard.tap))
        for route, agents in chosen
        for source, sink in (route.agents, route.agents[::-1])
        if sink in agents and sink.config.endpoint.in_ is not None
    ]
    if not flows:
        others = ", ".join(
            agent.config.name for route, _ in chosen for agent in route.agents if agent.config.name != name
        )
        raise NsbridgeError(f"{name} hands nothing over into its container; what it takes is handed over by {others}")
    return flows


@contextmanager
def _lent(flows: list[Flow]) -> Iterator[None]:
    with ExitStack() as stack:
        for flow in flows:
            stack.enter_context(flow.page.lent())
        yield


def _stream(request_id: object, flows: list[Flow], count: int | None, socket: int, begin: Callable[[], object]) -> int:
    """Be the child: write items to the caller until the tap ends, then the result."""
    os.nice(_NICE)
    begin()
    gone = select.poll()
    gone.register(socket, 0)  # reports that the caller has hung up
    left = count
    items: list[dict[str, object]] = [{"tapped": [flow.sink for flow in flows]}]
    while True:
        if not write_all(socket, b"".join(_line(request_id, item=item) for item in items)):
            return 1
        if left == 0:
            break
        if gone.poll(EVERY * 1000):
            return 1
        is_over = not any(flow.page.cells[scoreboard.TAPPED] for flow in flows)
        items = sorted(_news(flows), key=lambda item: str(item.get("time", "")))
        if left is not None:
            items, left = _first(items, left)
        if is_over and not items:
            break
    write_all(socket, _line(request_id, result={"complete": left == 0}))
    return 0


def _news(flows: list[Flow]) -> Iterator[dict[str, object]]:
    for flow in flows:
        names: dict[str, object] = {"from": flow.source, "to": flow.sink}
        for found in flow.reader.read():
            yield names | (_shown(found) if isinstance(found, Tapped) else {"missed": found})


def _shown(message: Tapped) -> dict[str, object]:
    return {
        "time": timestamp(min(message.time, _LATEST) / 1e9),
        "epoch": f"{message.epoch:016x}",
        "seq": message.seq,
        "type": message.type,
        "bytes": message.size,
        "body": base64.b64encode(message.body).decode(),
        "cut": len(message.body) < message.size,
    }


_LATEST = 4_000_000_000 * 10**9  # a compromised agent may write any time


def _first(items: list[dict[str, object]], count: int) -> tuple[list[dict[str, object]], int]:
    """Return the items up to the message that completes `count`, and how many are left to show."""
    for number, item in enumerate(items):
        count -= "body" in item
        if not count:
            return items[: number + 1], 0
    return items, count


def _line(request_id: object, **content: object) -> bytes:
    return json.dumps({"id": request_id, **content}, separators=(",", ":")).encode() + b"\n"
