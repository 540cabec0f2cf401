"""Watch over all agents: kill those that give no sign of life, restart in order those that have grown too large.

One timer for all of them. It is due when the agent that has been silent for longest would be too late, so that a wedged
agent is killed within the deadline and not at the next round; and every LOOK_EVERY seconds for what is not urgent.
Only the heartbeat decides: what /proc shows of a process (stopped, waiting for a disk) decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

from nsbridge.agents import scoreboard
from nsbridge.config.schema import HealthConfig, RouteConfig
from nsbridge.supervisor.health.blocked import BlockedWatch
from nsbridge.supervisor.health.deadwatch import DeadWatch
from nsbridge.supervisor.health.measuring import Found, Measurer
from nsbridge.supervisor.host import procfs, usage
from nsbridge.supervisor.host.usage import Usage
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.process import AgentProcess
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.routes.roster import Roster

LOOK_EVERY = 5.0  # seconds
LOOKS = 100  # at most, in the time after which silence is too long: an agent chooses when it would be late
SIZES_EVERY = 60.0  # seconds between two looks at one agent's size, where there are many
STUCK_AFTER = 1.0  # seconds after SIGKILL
SENDERS = 2  # children of an agent that sends into a queue exactly once; no other agent has any
MISSED = 1.5  # times between two heartbeats, after which `status` calls an agent wedged
_ALIVE = (State.STARTING, State.RUNNING)  # a stopping agent has a deadline of its own (lifecycle/agent.py)


class HealthCheck:
    """Serves itself in the daemon's loop from `start` on."""

    def __init__(self, services: Services, roster: Roster) -> None:
        self._loop = services.loop
        self._log = services.log
        self._limits = services.health
        self._roster = roster
        self._dead = DeadWatch(services, roster)
        self._blocked = BlockedWatch(services, roster)
        self._every = min(LOOK_EVERY, self._limits.patience)
        self._due = 0.0
        self._awake_since = 0.0  # agents are not judged by what was before
        self.measurer = Measurer(services.loop)
        self._next_sized = 0  # whose size is looked at next, by its place among the agents

    def start(self) -> None:
        """Begin; to be called once."""
        self._due = self._loop.now()
        self._check()
        self._blocked.start()

    def adopt(self, limits: HealthConfig) -> None:
        """Apply other limits from now on; the deadline must be the same, because agents beat by it."""
        self._limits = limits
        self._blocked.adopt(limits)

    def close(self) -> None:
        """End the children that measure."""
        self.measurer.close()

    def _check(self) -> None:
        now = self._loop.now()
        if now - self._due > self._limits.beat_every:
            self._awake_since = now  # we were stopped ourselves, and they may have been: let them beat first
        for route in self._roster.routes.values():
            route.note_blocked()
            for agent in route.agents:
                self._judge(agent, now)
        agents = self._roster.agents
        self._look_at_sizes(agents)
        self._dead.look()
        self._log.log_repeats()
        silent = [sign for agent in agents if (sign := last_sign(agent)) is not None]
        latest = max(min(silent, default=now), self._awake_since) + self._limits.patience
        self._due = min(max(latest, now + self._limits.patience / LOOKS), now + self._every)
        self._loop.call_at(self._due, self._check)

    def _judge(self, agent: ManagedAgent, now: float) -> None:
        process, sign = agent.process, last_sign(agent)
        if process is not None and process.wedged:
            self._see_whether_it_died(agent, process, now)
        elif process is not None and sign is not None and now - max(sign, self._awake_since) >= self._limits.patience:
            process.wedged = process.last_words = _diagnosis(agent, now)
            process.given_up_at = now
            self._log.error(agent.config.name, f"{process.wedged}: pid {process.child.pid} is killed")
            process.child.kill()

    def _see_whether_it_died(self, agent: ManagedAgent, process: AgentProcess, now: float) -> None:
        if not process.stuck and now - process.given_up_at > STUCK_AFTER:
            process.stuck = True
            self._log.error(agent.config.name, f"pid {process.child.pid} was killed and does not end: {STUCK}")

    def _look_at_sizes(self, agents: Sequence[ManagedAgent]) -> None:
        """Look at a few sizes, in turn: it costs a system call or three for each process."""
        count = min(len(agents), math.ceil(len(agents) * self._every / SIZES_EVERY))
        first = self._next_sized % len(agents) if agents else 0
        self._next_sized = first + count
        for agent in islice((*agents[first:], *agents[:first]), count):
            self._look_at_size(agent)
        running = [(agent, agent.process) for agent in agents if agent.process and agent.state is State.RUNNING]
        if running:
            self._note_size(*min(running, key=lambda pair: pair[1].measured_at))

    def _note_size(self, agent: ManagedAgent, process: AgentProcess) -> None:
        """Keep the size for `status`."""
        process.measured_at = self._loop.now()
        process.usage = usage.about((process.child.pid, *agent.senders))

    def _look_at_size(self, agent: ManagedAgent) -> None:
        process = agent.process
        if process is None or process.wedged or agent.state is not State.RUNNING:
            return  # a process that is being killed may look hollow
        if (agent.uptime or 0) < self._limits.deadline:
            return
        children = procfs.children(process.child.pid)
        if odd := HOLLOW if usage.is_hollow(process.child.pid) else CROWDED if len(children) > SENDERS else "":
            process.last_words = odd
            self._log.error(agent.config.name, f"pid {process.child.pid} is killed: {odd}")
            process.child.kill()
            return
        allowed = allowed_memory(agent.route, self._limits.max_memory)
        for pid in (process.child.pid, *children):
            size = usage.at_most(pid)
            if size is None:
                continue
            if size.memory > allowed and size.descriptors <= self._limits.max_descriptors:
                self._measure(agent, process, pid, size)
            elif why := excess(size, allowed, self._limits.max_descriptors):
                self._restart(agent, process, f"pid {pid} had {why}")
                return

    def _measure(self, agent: ManagedAgent, process: AgentProcess, pid: int, size: Usage) -> None:
        """Measure a process's own memory and judge it; if that takes too long, its upper bound decides."""

        def judge(found: Found) -> None:
            own = found[pid]
            if agent.process is not process or agent.state is not State.RUNNING:
                return
            allowed = allowed_memory(agent.route, self._limits.max_memory)
            if own is not None:
                why = excess(Usage(own, size.descriptors), allowed, self._limits.max_descriptors)
            elif self.measurer.is_unreadable(pid):
                why = excess(size, allowed, self._limits.max_descriptors) + ", and its own memory cannot be measured"
            else:
                return  # it has ended, or no measuring child could be forked
            if why:
                self._restart(agent, process, f"pid {pid} had {why}")

        self.measurer.ask((pid,), judge)

    def _restart(self, agent: ManagedAgent, process: AgentProcess, why: str) -> None:
        process.last_words = f"too large: {why}"
        self._log.error(agent.config.name, f"{process.last_words}: it is restarted")
        agent.restarts += 1
        agent.restart()


HOLLOW = "its first thread has ended and others run on, which hides what it uses; no healthy agent does that"
CROWDED = f"it has more than {SENDERS} children, whose sizes would take long to read; no healthy agent has"
STUCK = "it is stuck in the kernel, as in a file system that does not answer; it is replaced when that lets it go"


def last_sign(agent: ManagedAgent) -> float | None:
    """Return the time of its last sign of life, by the loop's clock; None if it owes none."""
    if agent.process is None or agent.process.wedged or agent.state not in _ALIVE:
        return None
    return agent.scoreboard.last_sign()


def silence(agent: ManagedAgent, now: float) -> float:
    """Return the seconds since its last sign of life."""
    return max(0.0, now - agent.scoreboard.last_sign())


def wedged(agent: ManagedAgent, now: float) -> str:
    """Return why an agent is to be killed for its silence, or was. Empty if it is well."""
    process = agent.process
    if process is None:
        return ""
    if process.stuck:
        return f"{process.wedged}: killed, but {STUCK}"
    if process.wedged or agent.state not in _ALIVE:
        return process.wedged
    return _diagnosis(agent, now) if silence(agent, now) > MISSED * agent.beat_every else ""


def _diagnosis(agent: ManagedAgent, now: float) -> str:
    silent = silence(agent, now)
    beat = agent.scoreboard.cells[scoreboard.BEAT] / 1e9
    if now - beat < MISSED * agent.beat_every:
        return f"wedged: the work beside its loop has made no progress for {silent:.1f} s"
    return f"wedged: no heartbeat for {silent:.1f} s"


def excess(usage: Usage, memory: int, descriptors: int) -> str:
    """Return what it has too much of, with the numbers; empty if nothing."""
    if usage.memory > memory:
        return f"{usage.memory / 1e6:.1f} MB of memory, {memory / 1e6:.1f} MB are allowed"
    if usage.descriptors > descriptors:
        return f"{usage.descriptors} descriptors, {descriptors} are allowed"
    return ""


def allowed_memory(route: RouteConfig, beyond: int) -> int:
    """Return the bytes an agent may have: `beyond` its window and the longest message, each twice, as they move."""
    longest = max(agent.endpoint.longest for agent in route.agents)
    return beyond + 2 * (route.window.bytes + longest)
