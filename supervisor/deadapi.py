"""What the control socket may ask about dead letters: list, show, retry, drop. deadletters.py touches the files."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime

from nsbridge.agents import state
from nsbridge.config.errors import NoSuchNameError, NsbridgeError, UsageError
from nsbridge.supervisor import deadletters, journalview
from nsbridge.supervisor.control import Answer
from nsbridge.supervisor.deadletters import Letter
from nsbridge.supervisor.lifecycle import State
from nsbridge.supervisor.managed import Managed
from nsbridge.supervisor.route import Route
from nsbridge.supervisor.services import Services

MAX_AT_ONCE = 1000  # letters that one call lists, gives back or removes
MAX_BODY = 64 << 10  # bytes of a message that `show` sends

Select = Callable[[dict[str, object]], list[tuple[Route, list[Managed]]]]
Method = Callable[[dict[str, object], Answer], None]


class DeadApi:
    """The four methods. `select` finds routes and agents by `names`, as for `status`."""

    def __init__(self, services: Services, select: Select) -> None:
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
        chosen = self._select(params)
        found, more = self._of(chosen)
        waiting = {}
        for route, _ in chosen:
            for agent in route.agents:
                if count := deadletters.given_back(self._state_dir, agent.config.name):
                    waiting[agent.config.name] = count
        answer.result({"letters": [_shown(letter) for letter in found], "more": more, "to_be_retried": waiting})

    def _show(self, params: dict[str, object], answer: Answer) -> None:
        letter = self._named(str(params.get("id")), {})
        body = deadletters.body_of(self._state_dir, letter, MAX_BODY)
        file = deadletters.path_of(self._state_dir, letter)
        content = {"file": file, "body": base64.b64encode(body).decode(), "cut": len(body) < letter.bytes}
        answer.result(_shown(letter) | content)

    def _each(self, params: dict[str, object], answer: Answer, work: Callable[[Letter], None]) -> None:
        """Do it to all that `ids` means, as far as possible: letters, or the names of agents and routes, or all."""
        words = params.get("ids")
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise UsageError("name dead letters, routes or agents, or write all")
        names = [word for word in words if "/" not in word]
        letters, more = self._of(self._select({"names": names})) if names else ([], False)
        boxes: dict[str, list[Letter]] = {}
        letters = list(dict.fromkeys([*letters, *(self._named(word, boxes) for word in words if "/" in word)]))
        done, failed = [], []
        for letter in letters[:MAX_AT_ONCE]:
            try:
                work(letter)
                done.append(letter)
            except NsbridgeError as error:
                failed.append({"id": letter.id, "error": str(error)})
        sinks = {letter.agent for letter in done}
        waiting = self._tell(sinks) if work == self._give_back else {}
        for _, agents in self._select({"names": sorted(sinks)}) if sinks else []:
            for sink in agents:
                sink.tell("letters")  # there is room for the letter that it may be waiting to write
        more = more or len(letters) > MAX_AT_ONCE
        answer.result({"done": [letter.id for letter in done], "failed": failed, "more": more, "waiting": waiting})

    def _give_back(self, letter: Letter) -> None:
        route, source, _ = self._flow(letter)
        name = source.config.name
        if source.config.endpoint.out is None:
            raise NsbridgeError(f"{letter.id}: {name} does not send any more; it can only be dropped")
        handed = journalview.handed(str(state.journal_path(self._state_dir, letter.agent, "in")))
        if handed is not None and handed[0] == letter.epoch and handed[1] < letter.seq:
            raise NsbridgeError(f"{letter.id}: {letter.agent} is putting it aside just now; try it again")
        longest = state.longest(source.config, route.config.window)
        deadletters.give_back(self._state_dir, letter, name, longest, self._limits.limits)
        self._log.info(letter.agent, f"dead letter {letter.id} was given back to {name}")
        self._events.dead(letter.agent, "given back", letter.id)

    def _drop(self, letter: Letter) -> None:
        deadletters.drop(self._state_dir, letter)
        self._log.warning(letter.agent, f"dead letter {letter.id} was dropped: {letter.bytes} bytes")
        self._events.dead(letter.agent, "dropped", letter.id)

    def _tell(self, sinks: set[str]) -> dict[str, str]:
        """Let the sources take what was given back to them; the states of those that do not run."""
        waiting = {}
        for route, agents in self._select({"names": sorted(sinks)}) if sinks else []:
            for sink in agents:
                source = _other(route, sink)
                source.tell("retry")
                if source.state is not State.RUNNING:
                    waiting[source.config.name] = source.state.value
        return waiting

    def _flow(self, letter: Letter) -> tuple[Route, Managed, Managed]:
        """Its route, source and sink."""
        ((route, (sink,)),) = self._select({"names": [letter.agent]})
        return route, _other(route, sink), sink

    def _of(self, chosen: list[tuple[Route, list[Managed]]]) -> tuple[list[Letter], bool]:
        letters: list[Letter] = []
        more = False
        for _, agents in chosen:
            for agent in agents:
                found = deadletters.letters_of(self._state_dir, agent.config.name)
                letters += found.letters
                more = more or found.more
        return letters[:MAX_AT_ONCE], more or len(letters) > MAX_AT_ONCE

    def _named(self, word: str, boxes: dict[str, list[Letter]]) -> Letter:
        """The one letter that ROUTE:AGENT/EPOCH-SEQ or ROUTE:AGENT/SEQ means; `boxes` are those that were looked into.

        Raises NsbridgeError, NoSuchNameError.
        """
        name, slash, number = word.partition("/")
        if not slash:
            raise NoSuchNameError(f"{word!r} is not the ID of a dead letter; nsbridgectl dead list shows them")
        if name not in boxes:
            chosen = [agent.config.name for _, agents in self._select({"names": [name]}) for agent in agents]
            boxes[name] = [x for agent in chosen for x in deadletters.letters_of(self._state_dir, agent).letters]
        found = [x for x in boxes[name] if number in (str(x.seq), x.id.partition("/")[2])]
        if len(found) != 1:
            many = f"means {len(found)} dead letters, write one of {', '.join(x.id for x in found[:3])}"
            raise NsbridgeError(f"{word} {many if found else 'is no dead letter; nsbridgectl dead list shows them'}")
        return found[0]


def _other(route: Route, agent: Managed) -> Managed:
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
