"""A managed agent under any sequence of events: real, but for its processes and its container (tests/agent_life.py)."""

from __future__ import annotations

import signal
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nsbridge.agents.fork import EXIT_AGAIN, EXIT_NEVER
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.process import AgentProcess
from nsbridge.supervisor.lifecycle.table import Stage, State
from tests.agent_life import Life

S = State
CODES = st.sampled_from([0, EXIT_AGAIN, EXIT_NEVER, -signal.SIGKILL, -signal.SIGSEGV])
ENOUGH = 200  # deadlines and answers until an agent must have settled


class AnyLife(RuleBasedStateMachine):
    """Only what can happen does happen, in any order."""

    directory = Path()

    def __init__(self) -> None:
        super().__init__()
        self.life = Life(self.directory)
        self.agent, self.container, self.witness = self.life.agent, self.life.container, self.life.witness
        self.before = S.STOPPED
        self.nested: str = ""  # an order that the neighbour gives at the next change

    def teardown(self) -> None:
        self.settle_down()
        self.life.close()

    @initialize(is_running=st.booleans())
    def begin(self, is_running: bool) -> None:
        """Begin in RUNNING or in STOPPED; chance seldom leads to RUNNING."""
        if is_running:
            self.life.run()
            self.before = S.RUNNING

    # -- people, reloads, the route

    @rule(order=st.sampled_from(["start", "start", "stop", "restart", "hold", "release", "release"]))
    def somebody_orders(self, order: str) -> None:
        getattr(self.agent, order)()

    @rule(order=st.sampled_from(["start", "stop", "restart", "hold", "release", "refuse"]))
    def neighbour_will_order(self, order: str) -> None:
        """Give an order from within the notification, as an observer or another agent's route does."""
        self.nested = order
        self.witness.on_change = self._order_once

    def _order_once(self, agent: ManagedAgent) -> None:
        order, self.nested = self.nested, ""
        if order == "refuse":
            if agent.state is S.RUNNING:
                agent.refuse("it would take its own messages")
        elif order:
            getattr(agent, order)()

    @rule(reason=st.sampled_from(["", "it would take its own messages"]))
    def route_forbids(self, reason: str) -> None:
        self.witness.forbidden = reason

    @precondition(lambda self: self.agent.process and self.agent.state in (S.STARTING, S.RUNNING))
    @rule()
    def somebody_refuses(self) -> None:
        self.agent.refuse("its dead letters are odd")

    @precondition(lambda self: self.agent.state in (S.STOPPING, S.STOPPED))
    @rule()
    def nobody_waits_for_messages(self) -> None:
        self.agent.exit()

    # -- the container

    @rule(answer=st.sampled_from(["found", "found", "absent", "refused", ""]))
    def looks_are_answered_at_once(self, answer: str) -> None:
        self.container.answer = getattr(self.container, answer) if answer else None

    @precondition(lambda self: self.container.is_asked)
    @rule(answer=st.sampled_from(["found", "absent", "refused"]))
    def look_ends(self, answer: str) -> None:
        getattr(self.container, answer)()

    @precondition(lambda self: self.container.process is not None)
    @rule()
    def container_ends(self) -> None:
        inside = [process for process in self.agent.living if process is self.agent.process]
        self.container.ended()
        for process in inside:
            assert process.stage is Stage.KILLED, "a process stays in a container that is gone"

    @precondition(lambda self: self.container.is_expecting)
    @rule()
    def container_may_have_come(self) -> None:
        self.agent.container_may_have_come()

    # -- the process

    @precondition(lambda self: self.agent.process)
    @rule(said=st.sampled_from(["ready", "ready", "drained", "error", "nonsense"]))
    def process_says(self, said: str) -> None:
        self.agent.report_received({"report": said, "text": "words"})

    @precondition(lambda self: self.agent.living)
    @rule(data=st.data(), code=CODES)
    def process_leaves(self, data: st.DataObject, code: int) -> None:
        process = data.draw(st.sampled_from(self.agent.living))
        is_final = self._is_final(process, code)
        self.agent.leaves(process, code)
        assert not is_final or S.FATAL in self.witness.states

    @precondition(lambda self: self.agent.living)
    @rule(data=st.data(), code=CODES)
    def process_dies(self, data: st.DataObject, code: int) -> None:
        process = data.draw(st.sampled_from(self.agent.living))
        is_final = self._is_final(process, code)
        self.agent.dies(process, code)
        assert not is_final or S.FATAL in self.witness.states

    def _is_final(self, process: AgentProcess, code: int) -> bool:
        """True if this exit code has to end in FATAL."""
        is_working = self.agent.state in (S.STARTING, S.RUNNING) and process.stage is not Stage.KILLED
        return code == EXIT_NEVER and process is self.agent.process and is_working

    @rule(cannot=st.booleans())
    def fork_fails(self, cannot: bool) -> None:
        self.agent.cannot_fork = cannot

    @precondition(lambda self: self.life.loop.pending())
    @rule()
    def deadline_comes(self) -> None:
        self.life.loop.fire()

    # -- what always holds

    @invariant()
    def at_most_one_process_may_work(self) -> None:
        """Check that each process except the present one is reaped, or was released after it left user space."""
        working = [process for process in self.agent.living if process.keeper is not None]
        assert working in ([], [self.agent.process])
        assert self.agent.process is None or self.agent.process in working, "it holds a process that is gone"

    @invariant()
    def neighbour_heard_each_state_in_order(self) -> None:
        for before, after in self.witness.heard:
            assert before is self.before is not after
            self.before = after
        self.witness.heard.clear()
        assert self.before is self.agent.state

    @invariant()
    def deadline_is_there_only_while_it_is_needed(self) -> None:
        count = self.life.deadlines()
        assert count <= 1
        process: AgentProcess | None = self.agent.process
        match self.agent.state:
            case S.BACKOFF:
                assert count == 1
            case S.WAITING:
                assert count == 1 or self.container.is_asked or process is not None
            case S.STOPPING:
                assert process is not None
                assert count == (process.stage is not Stage.KILLED)
            case S.STARTING:
                assert count == 0
                assert self.container.is_asked or process is not None
            case S.RUNNING:
                assert count == 0
                assert process is not None
            case S.FATAL:
                assert count == 0
                assert self.agent.detail
            case S.STOPPED:
                assert count == 0
                assert process is None
                assert not self.container.is_asked
                assert not self.container.is_expecting
                assert not self.agent.wanted or self.agent.held

    @invariant()
    def only_a_killed_process_is_left_where_none_may_work(self) -> None:
        if self.agent.state in (S.WAITING, S.FATAL) and self.agent.process is not None:
            assert self.agent.process.stage is Stage.KILLED

    # -- how it ends

    def settle_down(self) -> None:
        """Check that a wanted and released agent works, or has a reason not to; and that a stop ends it."""
        self.nested, self.witness.forbidden, self.agent.cannot_fork = "", "", False
        self.container.answer = self.container.found
        self.agent.release()
        self.agent.start()
        for _ in range(ENOUGH):
            if self.agent.state is S.RUNNING:
                break
            self._resume()
        assert self.agent.state in (S.RUNNING, S.BACKOFF, S.FATAL), self.agent.state
        assert self.agent.state is S.RUNNING or self.agent.detail
        self.agent.stop()
        for _ in range(ENOUGH):
            if self.agent.has_stopped:
                break
            self._resume()
        assert self.agent.has_stopped
        self.neighbour_heard_each_state_in_order()
        self.deadline_is_there_only_while_it_is_needed()

    def _resume(self) -> None:
        """Let happen what happens without a person: an answer, the end of a killed process, a start, a deadline."""
        process = self.agent.process
        if self.container.is_asked:
            self.container.found()
        elif process is not None and process.stage is Stage.KILLED:
            self.agent.dies(process, -signal.SIGKILL)
        elif process is not None and process.stage is Stage.ENTERING:
            self.agent.report_received({"report": "ready"})
        elif self.life.loop.pending():
            self.life.loop.fire()


def test_any_sequence_of_events_keeps_the_rules(tmp_path: Path) -> None:
    AnyLife.directory = tmp_path
    run_state_machine_as_test(AnyLife, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))
