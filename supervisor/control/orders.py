"""start, stop and restart over the control socket; with `wait`, the answer comes when it is done."""

from __future__ import annotations

from collections.abc import Callable

from nsbridge.config.errors import NsbridgeError, UsageError
from nsbridge.supervisor.control.answer import Answer
from nsbridge.supervisor.control.status import phase_of
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.routes.roster import Roster, no_longer

_SETTLED = {State.RUNNING, State.WAITING, State.FATAL, State.STOPPED}

Method = Callable[[dict[str, object], Answer], None]


class Orders:
    """Methods start, stop and restart, and the callers that wait for them."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._waiting: list[Callable[[], bool]] = []  # each is called after a change until it returns True
        self.methods: dict[str, Method] = {
            "start": lambda params, answer: self._order(params, answer, ManagedAgent.start),
            "stop": lambda params, answer: self._order(params, answer, ManagedAgent.stop),
            "restart": lambda params, answer: self._order(params, answer, ManagedAgent.restart),
        }

    def changed(self) -> None:
        """End the waits that a change of any agent has fulfilled."""
        self._waiting = [done for done in self._waiting if not done()]

    def when(self, done: Callable[[], bool], when_done: Callable[[], None]) -> None:
        """Call `when_done` once, when `done` is true: now, or after some change."""

        def finished() -> bool:
            if not done():
                return False
            when_done()
            return True

        if not finished():
            self._waiting.append(finished)

    def _order(self, params: dict[str, object], answer: Answer, order: Callable[[ManagedAgent], None]) -> None:
        if not params.get("names"):
            raise UsageError("name a route or an agent, or write all")
        if self._roster.is_ending:
            raise NsbridgeError("the daemon is stopping")
        chosen = self._roster.select(params)
        for route, _ in chosen:
            if order is not ManagedAgent.stop and self._roster.is_going(route):
                raise no_longer(route)
        agents = [agent for _, agents in chosen for agent in agents]
        names = frozenset(agent.config.name for agent in agents)  # hundreds, looked up after each change
        restarting = {agent.config.name: agent.pid for agent in agents} if order is ManagedAgent.restart else {}
        for agent in agents:
            order(agent)

        def done() -> bool:
            return all(
                is_settled(agent) and (agent.pid is None or restarting.get(agent.config.name) != agent.pid)
                for agent in self._named(names)
            )

        def send_result() -> None:
            answer.result({"agents": [_item(agent) for agent in self._named(names)]})

        self.when(done if params.get("wait") else lambda: True, send_result)

    def _named(self, names: frozenset[str]) -> list[ManagedAgent]:
        """Look the agents up by name: a reload may have replaced the one that got the order."""
        return [agent for agent in self._roster.agents if agent.config.name in names]


def is_settled(agent: ManagedAgent) -> bool:
    """True if its state stays as it is until something happens: a stopped agent that is wanted is about to start."""
    return agent.state in _SETTLED and not (agent.state is State.STOPPED and agent.wanted)


def _item(agent: ManagedAgent) -> dict[str, object]:
    """Return its state and why it waits: an agent that runs may be blocked, and reports that before it is ready."""
    phase, detail = phase_of(agent)
    return {"name": agent.config.name, "state": agent.state.value, "phase": phase, "detail": detail}
