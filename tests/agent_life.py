"""A managed agent without processes and containers: the test decides what happens to it, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from nsbridge.agents.endpoints.file import FileEndpoint
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueOut
from nsbridge.agents.fork import Child
from nsbridge.agents.loop import Loop
from nsbridge.config.schema import (
    AgentConfig,
    Container,
    HealthConfig,
    LogConfig,
    RouteConfig,
)
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.containers.attachment import Attachment
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.process import AgentProcess, Channel
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.log.events import Events
from nsbridge.supervisor.log.log import open_log

LINGER = 1.0  # seconds; a deadline of the process that was replaced, not of the agent


class FakeTimer:
    """See Timer."""

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeLoop:
    """Time passes only from one deadline to the next."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.timers: list[FakeTimer] = []

    def now(self) -> float:
        return self.time

    def call_later(self, delay: float, callback: Callable[[], None]) -> FakeTimer:
        self.timers.append(FakeTimer(self.time + delay, callback))
        return self.timers[-1]

    def call_at(self, due: float, callback: Callable[[], None]) -> FakeTimer:
        return self.call_later(due - self.time, callback)

    def pending(self) -> list[FakeTimer]:
        self.timers = [timer for timer in self.timers if timer.callback is not None]
        return sorted(self.timers, key=lambda timer: timer.due)

    def fire(self) -> None:
        """Serve the next deadline."""
        timer = self.pending()[0]
        self.time = max(self.time, timer.due)
        callback, timer.callback = timer.callback, None
        assert callback is not None
        callback()


class FakeChild:
    """A process that lives until the test ends it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = -1
        self.killed = False

    def kill(self) -> None:
        self.killed = True


class FakeChannel:
    """Records the orders that the process gets."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.closed = False

    def send(self, order: str, **_fields: object) -> None:
        self.said.append(order)

    def close(self) -> None:
        self.closed = True


class FakeAttachment:
    """A container that comes and goes as the test says. `answer` is given at once; None: when the test says."""

    def __init__(self, agent: ManagedAgent) -> None:
        self.process: object = None
        self.ns_inode: int | None = None
        self.ns_path = ""
        self.init_user = (0, 0)
        self.name_watch = None
        self.is_asked = False
        self.is_expecting = False
        self.answer: Callable[[], None] | None = None
        self._agent = agent

    def locate(self) -> None:
        if self.is_asked:
            return
        if self.process is not None:
            self._agent.container_found()
        elif self.answer is not None:
            self.answer()
        else:
            self.is_asked = True

    def found(self) -> None:
        self.is_asked = self.is_expecting = False
        self.process, self.ns_inode = SimpleNamespace(pid=7, pidfd=-1), 7
        self._agent.container_found()

    def absent(self) -> None:
        self.is_asked = False
        self._agent.container_absent("exited")

    def refused(self) -> None:
        self.is_asked = self.is_expecting = False
        self._agent.container_refused("it is the host's own")

    def ended(self) -> None:
        self.process = self.ns_inode = None
        self._agent.container_ended("has ended")

    def wait(self) -> float:
        self.is_expecting = True
        return 1.0

    def abandon(self) -> None:
        self.is_asked = self.is_expecting = False

    def close(self) -> None:
        self.abandon()


class FakeAgent(ManagedAgent):
    """Its processes are fakes."""

    cannot_fork = False

    def __init__(self, services: Services, route: RouteConfig, config: AgentConfig) -> None:
        super().__init__(services, route, config, -1)
        self.container = FakeAttachment(self)
        self.attachment = cast(Attachment, self.container)
        self.made: list[AgentProcess] = []
        self.living: list[AgentProcess] = []  # not reaped

    def _begin(self) -> AgentProcess:
        if self.cannot_fork:
            raise OSError(11, "Resource temporarily unavailable")
        child, channel = FakeChild(100 + len(self.made)), FakeChannel()
        process = AgentProcess(cast(Child, child), cast(Channel, channel), self._loop.now(), keeper=self)
        self.made.append(process)
        self.living.append(process)
        return process

    def kills(self) -> list[bool]:
        return [cast(FakeChild, process.child).killed for process in self.made]

    def said(self, process: AgentProcess) -> list[str]:
        return cast(FakeChannel, process.channel).said

    def leaves(self, process: AgentProcess, code: int) -> None:
        """Have a process leave user space."""
        if process.keeper is not None:
            process.keeper.dying(code)

    def dies(self, process: AgentProcess, code: int) -> None:
        """Have a process end, and reap it."""
        self.living.remove(process)
        process.is_reaped = True
        if process.keeper is not None:
            process.keeper.ended(code)


class Witness:
    """A neighbour that writes down what it hears, and does as the route does."""

    def __init__(self) -> None:
        self.heard: list[tuple[State, State]] = []
        self.details: list[str] = []
        self.forbidden = ""
        self.heard_waits = 0
        self.on_change: Callable[[ManagedAgent], None] = lambda _agent: None
        self.agent: ManagedAgent | None = None

    def forbids(self, agent: ManagedAgent) -> str:
        return self.forbidden

    def drained(self) -> None:
        assert self.agent is not None
        self.agent.exit()

    def waits(self, agent: ManagedAgent) -> None:
        self.heard_waits += 1

    def changed(self, agent: ManagedAgent, before: State) -> None:
        self.heard.append((before, agent.state))
        self.details.append(agent.detail)
        self.on_change(agent)

    @property
    def states(self) -> list[State]:
        return [after for _, after in self.heard]


class Life:
    """One agent with all that it needs."""

    def __init__(self, directory: Path) -> None:
        self.loop = FakeLoop()
        self.real_loop = Loop()
        self.log = open_log(LogConfig(file=str(directory / "log"), level="debug"))
        arrivals = Arrivals(self.real_loop, self.log)
        services = Services(
            cast(Loop, self.loop), self.log, Events(), str(directory / "state"), arrivals, HealthConfig()
        )
        config = AgentConfig("r:a", Container(engines.runc.KIND, "a"), QueueEndpoint(out=QueueOut(1)))
        other = AgentConfig("r:b", Container(engines.runc.KIND, "b"), FileEndpoint(in_="/srv/in"))
        self.agent = FakeAgent(services, RouteConfig("r", (config, other)), config)
        self.container = self.agent.container
        self.witness = Witness()
        self.witness.agent = self.agent
        self.agent.neighbour = self.witness

    def run(self) -> AgentProcess:
        """Have the agent RUNNING; return its process."""
        self.container.answer = self.container.found
        self.agent.wanted = True
        self.agent.release()
        process = self.agent.made[-1]
        self.agent.report_received({"report": "ready"})
        self.witness.heard.clear()
        return process

    def deadlines(self) -> int:
        """Return how many deadlines the agent has."""
        return sum(timer.callback == self.agent._inbox._due for timer in self.loop.pending())

    def close(self) -> None:
        self.agent.forget()
        self.log.close()
        self.real_loop.close()
