"""Methods of the control socket for dead letters: list, show, retry, drop. deadletters.py touches the files."""

from __future__ import annotations

import base64
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from nsbridge.agents import journalreader, statefiles
from nsbridge.agents.dead.ids import in_short
from nsbridge.agents.journal import state
from nsbridge.config.errors import NoSuchNameError, NsbridgeError, UsageError
from nsbridge.supervisor.control import deadletters
from nsbridge.supervisor.control.answer import Answer
from nsbridge.supervisor.control.deadletters import Letter
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.routes.route import Route

MAX_AT_ONCE = 1000  # letters that one call lists, gives back or removes
MAX_BODY = 64 << 10  # bytes of a message that `show` sends
SLICE = 0.005  # seconds of giving back or removing letters; then the rest of the supervisor has its turn

Select = Callable[[dict[str, object]], list[tuple[Route, list[ManagedAgent]]]]
Method = Callable[[dict[str, object], Answer], None]


class DeadApi:
    """The four methods. `select` finds routes and agents by `names`, as for `status`."""

    def __init__(self, services: Services, select: Select) -> None:
        self._loop = services.loop
        self._state_dir = services.state_dir
        self._limits = services.dead
        self._log = services.log
        self._events = services.events
        self._select = select
        self.methods: dict[str, Method] = {
            "dead_list": self._list,
            "dead_show": self._show,
            "dead_retry": lambda params, answer: self._each(params, answer, self._give_back),
            "dead_drop": lambda params, answer: self._each(params, answer, self._drop),
        }

    def _list(self, params: dict[str, object], answer: Answer) -> None:
        self._select(params)  # a name that is wrong is refused at once
        answer.by_child(lambda: self._listing(params))

    def _listing(self, params: dict[str, object]) -> dict[str, object]:
        """Run in a child: there may be thousands of notes, and all of them are hostile."""
        chosen = self._select(params)
        letters: list[Letter] = []
        more = False
        waiting = {}
        for route, agents in chosen:
            for agent in agents:
                found = deadletters.letters_of(self._state_dir, agent.config.name)
                letters += found.letters
                more = more or found.more
            for agent in route.agents:
                if count := deadletters.given_back(self._state_dir, agent.config.name):
                    waiting[agent.config.name] = count
        more = more or len(letters) > MAX_AT_ONCE
        return {"letters": [_shown(letter) for letter in letters[:MAX_AT_ONCE]], "more": more, "to_be_retried": waiting}

    def _show(self, params: dict[str, object], answer: Answer) -> None:
        word = str(params.get("id"))
        answer.by_child(lambda: self._shown_with_body(word))

    def _shown_with_body(self, word: str) -> dict[str, object]:
        """Run in a child, because agents inherit the supervisor's memory: no message body may be in it."""
        ((agent, stem),) = self._named(word, {})
        letter = self._read(agent, stem)
        body = deadletters.body_of(self._state_dir, letter, MAX_BODY)
        file = deadletters.path_of(self._state_dir, letter)
        content = {"file": file, "body": base64.b64encode(body).decode(), "cut": len(body) < letter.bytes}
        return _shown(letter) | content

    def _each(self, params: dict[str, object], answer: Answer, work: Callable[[Letter], None]) -> None:
        """Do it to all that `ids` means, as far as possible: letters, or the names of agents and routes, or all."""
        words = params.get("ids")
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise UsageError("name dead letters, routes or agents, or write all")
        names = [word for word in words if "/" not in word]
        chosen: list[tuple[str, str]] = []
        more = False
        for agent in self._agents(names) if names else []:
            stems, has_more = deadletters.stems_of(self._state_dir, agent)
            chosen += [(agent, stem) for stem in stems]
            more = more or has_more
        boxes: dict[str, list[str]] = {}
        named = [one for word in words if "/" in word for one in self._named(word, boxes)]
        chosen = list(dict.fromkeys([*chosen, *named]))
        more = more or len(chosen) > MAX_AT_ONCE
        before = params.get("before", math.inf)
        if not isinstance(before, int | float):
            raise UsageError("before must be a number: seconds since 1970")
        self._go_through(_LetterBatch(deque(chosen[:MAX_AT_ONCE]), frozenset(named), work, answer, more, before))

    def _go_through(self, batch: _LetterBatch) -> None:
        """Work on letters for at most SLICE, then let the rest of the supervisor run."""
        end = self._loop.now() + SLICE
        while batch.left:
            self._do_one(batch, *batch.left.popleft())
            if batch.left and self._loop.now() >= end:
                self._loop.call_later(0, lambda: self._go_through(batch))
                return
        self._report(batch)
        sinks = {letter.agent for letter in batch.done}
        waiting = self._order_retries(sinks) if batch.work == self._give_back else {}
        for _, sink in self._there(sinks):
            sink.send_order("letters")  # it may be waiting for room to write a letter
        done = [letter.id for letter in batch.done]
        batch.answer.result({"done": done, "failed": batch.failed, "more": batch.more, "waiting": waiting})

    def _do_one(self, batch: _LetterBatch, agent: str, stem: str) -> None:
        try:
            letter = self._read(agent, stem)
        except NsbridgeError as error:
            if (agent, stem) in batch.named:  # else a note without its message, or one that has just gone
                batch.failed.append({"id": _id(agent, stem), "error": str(error)})
            return
        if letter.time is not None and letter.time > batch.before and (agent, stem) not in batch.named:
            return  # it was put aside since the caller began
        try:
            batch.work(letter)
            batch.done.append(letter)
        except NsbridgeError as error:
            batch.failed.append({"id": letter.id, "error": str(error)})

    def _read(self, agent: str, stem: str) -> Letter:
        letter = deadletters.letter_of(self._state_dir, agent, stem)
        if letter is None:
            raise NsbridgeError(f"{_id(agent, stem)} is not a dead letter any more; nsbridgectl dead list shows them")
        return letter

    def _give_back(self, letter: Letter) -> None:
        route, source, _ = self._flow(letter)
        name = source.config.name
        if source.config.endpoint.out is None:
            raise NsbridgeError(f"{letter.id}: {name} does not send any more; it can only be dropped")
        handed = journalreader.handed(str(statefiles.journal_path(self._state_dir, letter.agent, "in")))
        if handed is not None and handed[0] == letter.epoch and handed[1] < letter.seq:
            raise NsbridgeError(f"{letter.id}: {letter.agent} is putting it aside just now; try it again")
        longest = state.longest(source.config, route.config.window)
        deadletters.give_back(self._state_dir, letter, name, longest, self._limits.limits)

    def _drop(self, letter: Letter) -> None:
        deadletters.drop(self._state_dir, letter)

    def _report(self, batch: _LetterBatch) -> None:
        """Report what was done: a line and an event for each agent. A line a letter would displace all others."""
        by_agent: dict[str, list[Letter]] = {}
        for letter in batch.done:
            by_agent.setdefault(letter.agent, []).append(letter)
        for agent, letters in by_agent.items():
            which = in_short(letter.id for letter in letters)
            what = f"{len(letters):,} dead letters were" if len(letters) > 1 else "1 dead letter was"
            size = f"{sum(letter.bytes for letter in letters):,} B"
            if batch.work == self._give_back:
                self._log.info(agent, f"{what} given back to be delivered, {size}: {which}")
                self._events.dead(agent, "given back", which)
            else:
                self._log.warning(agent, f"{what} dropped, {size}: {which}")
                self._events.dead(agent, "dropped", which)

    def _order_retries(self, sinks: set[str]) -> dict[str, str]:
        """Let the sources take what was given back to them; return the states of those that do not run."""
        waiting = {}
        for route, sink in self._there(sinks):
            source = _other(route, sink)
            source.send_order("retry_dead")
            if source.state is not State.RUNNING:
                waiting[source.config.name] = source.state.value
        return waiting

    def _there(self, sinks: set[str]) -> list[tuple[Route, ManagedAgent]]:
        """Return those that no reload has taken away meanwhile, with their routes."""
        return [(route, agent) for route, agents in self._select({}) for agent in agents if agent.config.name in sinks]

    def _flow(self, letter: Letter) -> tuple[Route, ManagedAgent, ManagedAgent]:
        """Return its route, source and sink. Raises NsbridgeError if a reload has removed them meanwhile."""
        ((route, (sink,)),) = self._select({"names": [letter.agent]})
        return route, _other(route, sink), sink

    def _agents(self, names: list[str]) -> list[str]:
        return [agent.config.name for _, agents in self._select({"names": names}) for agent in agents]

    def _named(self, word: str, boxes: dict[str, list[str]]) -> list[tuple[str, str]]:
        """Return (agent, EPOCH-SEQ) of the one letter that ROUTE:AGENT/EPOCH-SEQ or ROUTE:AGENT/SEQ means.

        `boxes` has the names in the directories that were listed. Raises NsbridgeError, NoSuchNameError.
        """
        name, slash, number = word.partition("/")
        if not slash:
            raise NoSuchNameError(f"{word!r} is not the ID of a dead letter; nsbridgectl dead list shows them")
        found = []
        for agent in self._agents([name]):
            if agent not in boxes:
                boxes[agent] = deadletters.stems_of(self._state_dir, agent)[0]
            found += [(agent, stem) for stem in boxes[agent] if number in _numbers(stem)]
        if len(found) != 1:
            many = f"means {len(found)} dead letters, write one of {', '.join(_id(*one) for one in found[:3])}"
            raise NsbridgeError(f"{word} {many if found else 'is no dead letter; nsbridgectl dead list shows them'}")
        return found


@dataclass(slots=True)
class _LetterBatch:
    """Letters that are given back or dropped for one request."""

    left: deque[tuple[str, str]]  # agent and EPOCH-SEQ
    named: frozenset[tuple[str, str]]  # those that were named one by one
    work: Callable[[Letter], None]
    answer: Answer
    more: bool  # there are more letters than one request handles
    before: float  # seconds since 1970: of names, only letters that were put aside before
    done: list[Letter] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


def _numbers(stem: str) -> tuple[str, str]:
    """Return the two forms of a letter's name behind the slash: SEQ, and EPOCH-SEQ without zeros before SEQ."""
    epoch, _, seq = stem.partition("-")
    return str(int(seq)), f"{epoch}-{int(seq)}"


def _id(agent: str, stem: str) -> str:
    return f"{agent}/{_numbers(stem)[1]}"


def _other(route: Route, agent: ManagedAgent) -> ManagedAgent:
    first, second = route.agents
    return second if agent is first else first


def _shown(letter: Letter) -> dict[str, object]:
    when = None if letter.time is None else datetime.fromtimestamp(letter.time, UTC)
    return {
        "id": letter.id,
        "agent": letter.agent,
        "epoch": letter.epoch,
        "seq": letter.seq,
        "time": when and when.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "bytes": letter.bytes,
        "type": letter.type,
        "where": letter.where,
        "why": letter.why,
    }
