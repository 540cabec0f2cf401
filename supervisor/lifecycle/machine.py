"""Runs one agent through the state table: one loop serves the orders of others and the events that happen."""

from __future__ import annotations

from abc import ABC, abstractmethod

from nsbridge.agents.loop import Loop
from nsbridge.supervisor.lifecycle import table
from nsbridge.supervisor.lifecycle.inbox import Inbox
from nsbridge.supervisor.lifecycle.table import Action, Event, Facts, State


class StateMachine(ABC):
    """The state of one agent. A subclass reports what happens and carries out the actions."""

    def __init__(self, loop: Loop) -> None:
        self.state = State.STOPPED
        self.wanted = False
        self.held = True  # it does not start, whatever is wanted
        self.detail = ""  # why it does not run, as `status` shows it
        self._inbox = Inbox(loop, self._take)
        self._happened = self._inbox.happened

    def start(self) -> None:
        """Want it to run, from now on."""
        self.wanted = True
        self._inbox.ask(Event.START)

    def stop(self) -> None:
        """Want it not to run; it hands over what is in flight first."""
        self.wanted = False
        self._inbox.ask(Event.STOP)

    def restart(self) -> None:
        """Stop it, then start it again."""
        self.wanted = True
        self._inbox.ask(Event.STOP)

    def hold(self) -> None:
        """Stop it, and start it only after `release`, even if it is wanted."""
        self.held = True
        self._inbox.ask(Event.STOP)

    def release(self) -> None:
        """Start it if it is wanted."""
        self.held = False
        self._inbox.ask(Event.START)

    def exit(self) -> None:
        """Have an agent that is stopping exit now."""
        self._inbox.ask(Event.EXIT)

    def refuse(self, reason: str) -> None:
        """Kill the agent until the operator starts it, because a restart cannot help."""
        self._inbox.ask(Event.REFUSED, reason)

    @property
    def may_run(self) -> bool:
        """True if it is wanted and not held."""
        return self.wanted and not self.held

    @property
    def has_stopped(self) -> bool:
        """True if it has stopped and does not start again by itself."""
        return self.state is State.STOPPED and not self.may_run

    def _take(self, event: Event, reason: str) -> None:
        before = self.state
        self.state, actions = table.step(before, event, self._facts)
        self.detail = table.detail(before, event, self.state, self.detail, reason)
        if self.state is not before:
            self._inbox.cancel_deadline()
        for action in actions:
            self._carry_out(action)
        if self.state is not before:
            self._entered(before, event)

    @property
    @abstractmethod
    def _facts(self) -> Facts:
        """Return what the guards of the table ask about."""

    @abstractmethod
    def _carry_out(self, action: Action) -> None:
        """Do it without waiting; what follows from it is an event."""

    @abstractmethod
    def _entered(self, before: State, event: Event) -> None:
        """Report the new state, whose actions are done."""
