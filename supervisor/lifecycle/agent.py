"""One agent as the supervisor manages it: carries out what table.py decides, and feeds it what happens.

Holds the agent's process by pidfd, its control channel, its scoreboard, and its container (containers/attachment.py).
The one loop serves all of it; nothing here blocks.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Protocol

from nsbridge.agents import fork, journalreader, limits, scoreboard
from nsbridge.agents.confinement.entry import Assignment, Filters
from nsbridge.agents.loop import Timer
from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.agents.statefiles import journal_path
from nsbridge.config.schema import AgentConfig, RouteConfig
from nsbridge.supervisor.containers.attachment import Attachment
from nsbridge.supervisor.host import procfs, usage
from nsbridge.supervisor.lifecycle import table as lifecycle
from nsbridge.supervisor.lifecycle.agentlog import AgentLog
from nsbridge.supervisor.lifecycle.evidence import COUNTER, SENDERS, EvidenceRefused
from nsbridge.supervisor.lifecycle.process import AgentProcess
from nsbridge.supervisor.lifecycle.restart import RestartPolicy
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.lifecycle.table import Action, Event, State

DRAIN_LIMIT = 5.0  # seconds to hand over what is in flight
EXIT_LIMIT = LINGER_LIMIT = 1.0  # seconds to exit when told to; for a process that was replaced to be gone
REAP_WITHIN = 0.1  # seconds until it is asked again whether a killed agent is gone
LINGERS = "it is stuck in the kernel while its files are closed, and keeps its namespace"


class Neighbour(Protocol):
    """The route, as one of its agents sees it."""

    def forbids(self, agent: ManagedAgent) -> str:
        """Return the reason why the agent must not serve beside the others; empty if it may."""
        ...

    def drained(self) -> None:
        """An agent has nothing in flight any more."""

    def entered(self, agent: ManagedAgent, before: State) -> None:
        """Its state is another; what that asks for is still to be done."""

    def changed(self, agent: ManagedAgent) -> None:
        """Its state is another, and that is done."""


class ManagedAgent:
    """One agent of one route, whatever process it is at the moment."""

    def __init__(self, services: Services, route: RouteConfig, config: AgentConfig, peer_fd: int) -> None:
        self.route = route
        self.config = config
        self.beat_every = services.health.beat_every
        self.state = State.STOPPED
        self.wanted = False
        self.held = True  # it does not start, whatever is wanted
        self.detail = ""
        self.last_exit: str | None = None
        self.restarts = 0
        self.attachment = Attachment(services.loop, services.arrivals, config.container, config.namespace, self)
        self.scoreboard = Scoreboard()
        journalreader.recall(self.scoreboard, services.state_dir, config.name)
        self.neighbour: Neighbour | None = None
        self._loop = services.loop
        self._log = services.log
        self._state_dir = services.state_dir
        self._services = services
        self._peer_fd = peer_fd
        self._policy = RestartPolicy()
        self._process: AgentProcess | None = None
        self._ended_at = ""  # time of day at which the container was seen to end; empty while it runs
        self._timer: Timer | None = None
        self._served: float | None = None  # seconds that the last process was ready for
        self._by_signal = False  # whether a signal ended it
        self._agent_log = AgentLog(services.log, services.events, config.name)
        self._do: dict[Action, Callable[[], None]] = {
            Action.LOCATE: self._locate,
            Action.SPAWN: self._spawn,
            Action.DRAIN: self._drain,
            Action.KILL: self._kill,
            Action.RETRY: self._retry,
            Action.LOOK: self._look,
        }

    # What the route and the control socket ask

    def start(self) -> None:
        """Want it to run, from now on."""
        self.wanted = True
        self._policy.forget()
        if not self.held:
            self._feed(Event.START)

    def stop(self) -> None:
        """Want it not to run; it hands over what is in flight first."""
        self.wanted = False
        self._feed(Event.STOP)

    def restart(self) -> None:
        """Stop it, then start it again."""
        if self.held:
            self.wanted = True
            return
        self._feed(Event.STOP)
        self.wanted = True
        self._policy.forget()
        if self.state is State.STOPPED:
            self._feed(Event.START)

    def hold(self) -> None:
        """Stop it, and start it only after `release`, whoever wants it to run."""
        self.held = True
        self._feed(Event.STOP)

    def release(self) -> None:
        """Start it if that is wanted."""
        self.held = False
        if self.wanted:
            self.start()

    def exit(self) -> None:
        """Tell a draining agent to go now."""
        process = self._process
        if process is not None and not process.told_to_exit:
            process.told_to_exit = True
            process.channel.say("exit")
            self._deadline(EXIT_LIMIT)

    def refuse(self, reason: str) -> None:
        """Stop the agent until the operator starts it, because a restart cannot help."""
        self.detail = reason
        self._log.error(self.config.name, f"{reason}; it stays stopped until nsbridgectl start")
        self._feed(Event.REFUSED)

    def tell(self, order: str, **fields: object) -> None:
        """Send its process an order (agents/control.py). Without a process, the next one reads the state instead."""
        if self._process is not None:
            self._process.channel.say(order, **fields)

    @property
    def pid(self) -> int | None:
        """Its process, None if there is none."""
        return self._process.child.pid if self._process else None

    @property
    def confinement(self) -> dict[str, object] | None:
        """What the kernel holds its process to, once that is ready."""
        return self._process.confinement if self._process else None

    @property
    def evidence(self) -> str | None:
        """What tells after a kill which messages were sent: the kernel's counter, or senders; None if not a queue."""
        if not self.config.endpoint.is_counted or self._process is None:
            return None
        return COUNTER if self._process.is_counted else SENDERS

    @property
    def no_counter(self) -> str:
        """Return the reason why senders are the evidence; empty if they are not."""
        return self._services.evidence.reason if self.evidence == SENDERS else ""

    @property
    def senders(self) -> list[int]:
        """The processes that send into a queue for it; only such as it has really made: it says itself which."""
        return usage.children_among(self.pid, self.scoreboard.senders()) if self.pid else []

    @property
    def container_pid(self) -> int | None:
        """The container's init, None if it is not running or not known (`ns:`, `host`)."""
        return self.attachment.process.pid if self.attachment.process else None

    @property
    def is_blind(self) -> bool:
        """Whether nothing tells when the container ends: only a namespace file is known."""
        return bool(self.attachment.ns_path)

    @property
    def is_drained(self) -> bool:
        """Whether it has no process, or one with nothing in flight."""
        return self._process is None or self._process.drained

    @property
    def pending(self) -> int:
        """Messages that it has taken and of which it does not know yet that they were handed over."""
        return self.scoreboard.cells[scoreboard.PENDING]

    @property
    def uptime(self) -> float | None:
        """Seconds since it was ready."""
        since = self._process.ready_since if self._process else None
        return None if since is None else self._loop.now() - since

    @property
    def retry_in(self) -> float | None:
        """Seconds to the next try or look."""
        if self.state not in (State.BACKOFF, State.WAITING) or self._timer is None:
            return None
        return max(0.0, self._timer.due - self._loop.now())

    @property
    def process(self) -> AgentProcess | None:
        """Its process at the moment, for health/check.py."""
        return self._process

    def forget(self) -> None:
        """Let go of all descriptors; the agent has stopped and is not used again.

        Nor is a circle left, so that its memory is given back at once: the collector does not see what is frozen.
        """
        self.attachment.close()
        del self.attachment
        self.neighbour = None
        self._do.clear()

    # The state machine's driver

    def _feed(self, event: Event) -> None:
        before = self.state
        following, actions = lifecycle.step(before, event)
        self.state = following
        if self.state is not before:
            self._cancel_deadline()
            starts_again = self.state is State.STARTING and before is State.BACKOFF  # the reason is still shown
            if self.state in (State.STARTING, State.RUNNING, State.STOPPED) and not starts_again:
                self.detail = ""
            self._log.debug(self.config.name, f"{before} → {self.state} ({event})")
            if self.neighbour is not None:
                self.neighbour.entered(self, before)
        for action in actions:
            self._do[action]()
        if following is State.STOPPED is not before:
            self.attachment.abandon()
            self._agent_log.left_behind(self.pending, str(journal_path(self._state_dir, self.config.name, "out")))
            if self.wanted and not self.held:
                self._feed(Event.START)  # it was to be restarted: nobody is told of the state between
                return
        if self.state is not before and self.neighbour is not None:
            self.neighbour.changed(self)

    def _deadline(self, delay: float) -> None:
        self._cancel_deadline()
        self._timer = self._loop.call_later(delay, lambda: self._feed(Event.DUE))

    def _cancel_deadline(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What the attachment tells (containers/attachment.py, Listener)

    def container_found(self) -> None:
        """See Listener."""
        self._ended_at = ""
        reason = self.neighbour.forbids(self) if self.neighbour else ""
        self.refuse(reason) if reason else self._feed(Event.FOUND)

    def container_absent(self, reason: str) -> None:
        """See Listener."""
        detail = f"container not running since {self._ended_at} ({reason})" if self._ended_at else reason
        if self.detail != detail:
            tell = self._log.info if self._ended_at else self._log.warning  # there was one, or it may be a mistake
            tell(self.config.name, f"waiting: {reason}")
        self.detail = detail
        self._feed(Event.ABSENT)

    def container_refused(self, reason: str) -> None:
        """See Listener."""
        self.refuse(reason)

    def container_ended(self, how: str) -> None:
        """See Listener."""
        if self.state is State.STOPPED:
            return
        self._ended_at = time.strftime("%H:%M:%S")
        self._log.info(self.config.name, f"{self.config.container} {how}")
        self.detail = f"container not running since {self._ended_at}"
        self._feed(Event.GONE)

    def container_may_have_come(self) -> None:
        """See Listener."""
        if self.state is State.WAITING:
            self._feed(Event.DUE)

    def _locate(self) -> None:
        self._cancel_deadline()
        if self._process is not None:
            self._deadline(REAP_WITHIN)  # the killed agent is not reaped yet
        else:
            self.attachment.locate()

    def _look(self) -> None:
        self._deadline(self.attachment.wait())

    # The process

    def _spawn(self) -> None:
        self._served, self._by_signal = None, False
        self.scoreboard.begin()
        try:
            self._process = AgentProcess.begin(self._loop, self._assignment, self, self._services.evidence)
        except EvidenceRefused as reason:
            self.refuse(str(reason))
        except OSError as error:
            self.last_exit = f"cannot be forked: {limits.explained(error)}"
            self._log.error(self.config.name, self.last_exit)
            self._feed(Event.DIED)

    def _assignment(self, control_fd: int) -> Assignment:
        held, lease = self.attachment.process, self._services.evidence.lease(self.config)
        return Assignment(
            route=self.route,
            agent=self.config,
            peer_fd=self._peer_fd,
            control_fd=control_fd,
            scoreboard=self.scoreboard,
            container_pid=held.pid if held else 0,
            pidfd=held.pidfd if held else -1,
            ns_path=self.attachment.ns_path,
            state_dir=self._state_dir,
            init_user=self.attachment.init_user,
            filters=Filters.of_agent(self.config, self.route, is_counted=lease is not None),
            supervisor_pid=os.getpid(),
            require=self._services.require,
            beat_every=self.beat_every,
            empty=self._services.empty,
            dead=self._services.dead.limits,
            counter=lease,
        )

    # What the process tells (process.py, Keeper)

    def hear(self, fields: dict[str, object]) -> None:
        """See Keeper."""
        process, said = self._process, fields.get("say")
        if process is None:
            return
        if said == "ready" and process.ready_since is None and self.state in (State.STARTING, State.STOPPING):
            process.ready_since = self._loop.now()
            process.places = fields.get("places")
            process.confinement = procfs.confinement(process.child.pid, fields.get("landlock"))
            self._agent_log.ready(process.child.pid, self.config, fields)
            self._feed(Event.READY)
        elif said == "drained" and self.state is State.STOPPING:
            process.drained = True
            if self.neighbour is not None:
                self.neighbour.drained()
        elif said == "error":
            process.last_words = str(fields.get("text"))[:1000]
        elif said in ("log", "dead"):
            self._agent_log.hear(fields, self._loop.now())

    def dying(self, code: int) -> None:
        """See Keeper: its successor need not wait. Whoever wants it gone does, for it may still hold its namespace."""
        process = self._process
        if process is not None and self.state in (State.STARTING, State.RUNNING):
            process.let_go()
            self._loop.call_later(LINGER_LIMIT, lambda: self._note_if_stuck(process))
            self.ended(code)

    def _note_if_stuck(self, process: AgentProcess) -> None:
        if not process.is_reaped:
            self._log.error(self.config.name, f"pid {process.child.pid}, now replaced, does not end: {LINGERS}")

    def ended(self, code: int) -> None:
        """See Keeper."""
        process, self._process = self._process, None
        if process is None:
            return
        self._note_exit(process, code)
        if code == fork.EXIT_NEVER and self.state is not State.FATAL:
            self.refuse(process.last_words or "it refused to run")
        else:
            self._served = self._loop.now() - process.ready_since if process.ready_since else None
            self._by_signal = code < 0
            self._feed(Event.DIED)

    def _note_exit(self, process: AgentProcess, code: int) -> None:
        self.last_exit = process.epitaph(code)
        if self.state in (State.STOPPING, State.WAITING):
            self._log.info(self.config.name, f"stopped: pid {process.child.pid}")
        else:
            self._log.warning(self.config.name, f"pid {process.child.pid} died: {self.last_exit}")
            if self.wanted:
                self.restarts += 1

    def _retry(self) -> None:
        delay = self._policy.died(self._loop.now(), self._served, self._by_signal, random.random())  # noqa: S311  (jitter)
        self.detail = self.last_exit or ""
        if delay:
            self._deadline(delay)
        else:
            self._feed(Event.DUE)

    def _drain(self) -> None:
        process = self._process
        if process is None:
            self._feed(Event.DIED)
        elif process.ready_since is None:
            self.exit()
        elif process.told_to_exit:
            self._deadline(EXIT_LIMIT)
        else:
            process.channel.say("drain")
            self._cancel_deadline()
            self._timer = self._loop.call_later(DRAIN_LIMIT, self.exit)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.child.kill()
