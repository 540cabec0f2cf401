"""One agent as the supervisor manages it: turns what happens into events of table.py and carries its actions out.

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
from nsbridge.agents.scoreboard import Scoreboard
from nsbridge.agents.statefiles import journal_path
from nsbridge.config.schema import AgentConfig, RouteConfig
from nsbridge.supervisor.containers.attachment import Attachment
from nsbridge.supervisor.host import procfs, usage
from nsbridge.supervisor.lifecycle.agentlog import AgentLog
from nsbridge.supervisor.lifecycle.evidence import COUNTER, SENDERS, EvidenceRefused
from nsbridge.supervisor.lifecycle.heldsocket import HeldSocket
from nsbridge.supervisor.lifecycle.machine import StateMachine
from nsbridge.supervisor.lifecycle.process import AgentProcess
from nsbridge.supervisor.lifecycle.restart import RestartPolicy
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.lifecycle.table import Action, Event, Facts, Stage, State

DRAIN_LIMIT = 5.0  # seconds to hand over what is in flight
EXIT_LIMIT = LINGER_LIMIT = 1.0  # seconds to exit after the order; until a replaced process is gone


class Neighbour(Protocol):
    """The route, as one of its agents sees it."""

    def forbids(self, agent: ManagedAgent) -> str:
        """Return the reason why the agent must not serve beside the others; empty if it may."""
        ...

    def drained(self) -> None:
        """Note that an agent has nothing in flight any more."""

    def waits(self, agent: ManagedAgent) -> None:
        """Note that the agent reports a reason to wait."""

    def changed(self, agent: ManagedAgent, before: State) -> None:
        """Note that the agent has entered a state and done its actions. It reports every state once, in order."""


class ManagedAgent(StateMachine):
    """One agent of one route, whatever process it is at the moment."""

    def __init__(self, services: Services, route: RouteConfig, config: AgentConfig, peer_fd: int) -> None:
        super().__init__(services.loop)
        self.route = route
        self.config = config
        self.beat_every = services.health.beat_every
        self.last_exit: str | None = None
        self.restarts = 0
        self.blocked_long = False  # it has been blocked for longer than health.max_blocked
        self.attachment = Attachment(services.loop, services.arrivals, config.container, config.namespace, self)
        self.scoreboard = Scoreboard()
        journalreader.recall(self.scoreboard, services.state_dir, config.name)
        self.neighbour: Neighbour | None = None
        self.process: AgentProcess | None = None  # None while it has none
        self._loop = services.loop
        self._log = services.log
        self._services = services
        self._peer_fd = peer_fd
        self._held_socket = HeldSocket(config.endpoint)
        self._policy = RestartPolicy()
        self._ended_at = ""  # time of day at which the container was seen to end; empty while it runs
        self._served: float | None = None  # seconds that the last process was ready for
        self._exit_code: int | None = None  # of the last process
        self._agent_log = AgentLog(services.log, services.events, config.name)
        self._do: dict[Action, Callable[[], None]] = {
            action: getattr(self, f"_{action.name.lower()}") for action in Action
        }

    # What the route and the control socket ask

    def send_order(self, order: str, **fields: object) -> None:
        """Send its process an order (agents/control.py). Without a process, the next one reads the state instead."""
        if self.process is not None:
            self.process.channel.send(order, **fields)

    @property
    def pid(self) -> int | None:
        """Return the pid of its process, None if there is none."""
        return self.process.child.pid if self.process else None

    @property
    def confinement(self) -> dict[str, object] | None:
        """Return the restrictions that the kernel enforces on its process, once the process is ready."""
        return self.process.confinement if self.process else None

    @property
    def evidence(self) -> str | None:
        """Return the evidence that shows after a kill which messages were sent: the kernel's counter, or senders.

        None if the endpoint is not a queue, or if there is no process.
        """
        if not self.config.endpoint.is_counted or self.process is None:
            return None
        return COUNTER if self.process.is_counted else SENDERS

    @property
    def no_counter(self) -> str:
        """Return the reason why senders are the evidence; empty if they are not."""
        return self._services.evidence.reason if self.evidence == SENDERS else ""

    @property
    def senders(self) -> list[int]:
        """Return the pids of the processes that send into a queue for it.

        The agent itself reports them, so only those that really are its children are returned.
        """
        return usage.children_among(self.pid, self.scoreboard.senders()) if self.pid else []

    @property
    def container_pid(self) -> int | None:
        """Return the pid of the container's init, None if it is not running or not known (`ns:`, `host`)."""
        return self.attachment.process.pid if self.attachment.process else None

    @property
    def is_blind(self) -> bool:
        """True if nothing reports the container's end: only a namespace file is known."""
        return bool(self.attachment.ns_path)

    @property
    def is_drained(self) -> bool:
        """True if it has no process, or one with nothing in flight."""
        return self.process is None or self.process.drained

    @property
    def pending(self) -> int:
        """Return how many messages it has taken without knowing yet that they were handed over."""
        return self.scoreboard.cells[scoreboard.PENDING]

    @property
    def uptime(self) -> float | None:
        """Return the seconds since it was ready; None if it is not ready."""
        since = self.process.ready_since if self.process else None
        return None if since is None else self._loop.now() - since

    @property
    def retry_in(self) -> float | None:
        """Return the seconds to the next start or look for the container; None if it waits for neither."""
        return self._inbox.left if self.state in (State.BACKOFF, State.WAITING) else None

    def forget(self) -> None:
        """Release all descriptors; the agent has stopped and is not used again.

        Leave no reference cycle: the collector does not look at frozen objects, so it would never free the memory.
        """
        self.attachment.close()
        self._held_socket.drop()
        del self.attachment
        self.scoreboard.cells[scoreboard.TAPPED] = 0
        self.neighbour = None
        self._do.clear()
        self._inbox.close()

    # What the machine asks (machine.py)

    @property
    def _facts(self) -> Facts:
        stage = self.process.stage if self.process else Stage.NONE
        return Facts(self.may_run, stage, is_hopeless=self._exit_code == fork.EXIT_NEVER)

    def _carry_out(self, action: Action) -> None:
        self._do[action]()

    def _entered(self, before: State, event: Event) -> None:
        self._log.debug(self.config.name, f"{before} → {self.state} ({event})")
        if self.neighbour is not None:
            self.neighbour.changed(self, before)

    # What the attachment reports (containers/attachment.py, Listener)

    def container_found(self) -> None:
        """See Listener."""
        self._ended_at = ""
        self._happened(Event.FOUND)

    def container_absent(self, reason: str) -> None:
        """See Listener."""
        detail = f"container not running since {self._ended_at} ({reason})" if self._ended_at else reason
        if self.detail != detail:
            log = self._log.info if self._ended_at else self._log.warning  # there was one, or it may be a mistake
            log(self.config.name, f"waiting: {reason}")
        self._happened(Event.ABSENT, detail)

    def container_refused(self, reason: str) -> None:
        """See Listener."""
        self._happened(Event.REFUSED, reason)

    def container_ended(self, how: str) -> None:
        """See Listener."""
        self._held_socket.drop()
        self._ended_at = time.strftime("%H:%M:%S")
        self._log.info(self.config.name, f"{self.config.container} {how}")
        self._happened(Event.GONE, f"container not running since {self._ended_at}")

    def container_may_have_come(self) -> None:
        """See Listener."""
        self._happened(Event.HINT)

    # What the process reports (process.py, Keeper)

    def report_received(self, fields: dict[str, object]) -> None:
        """See Keeper."""
        process, report = self.process, fields.get("report")
        if process is None:
            return
        if report == "ready":
            process.report = fields
            self._happened(Event.READY)
        elif report == "drained":
            self._happened(Event.DRAINED)
        elif report == "error":
            process.last_words = str(fields.get("text"))[:1000]
        elif report == "blocked" and self.neighbour is not None:
            self.neighbour.waits(self)
        elif report == "renew":
            self._held_socket.drop()
        elif report in ("log", "dead", "refused"):
            self._agent_log.log_report(fields, self._loop.now())

    def dying(self, code: int) -> None:
        """See Keeper."""
        self._note_exit(Event.LEFT, code)

    def ended(self, code: int) -> None:
        """See Keeper."""
        self._note_exit(Event.DIED, code)

    def _note_exit(self, event: Event, code: int) -> None:
        process = self.process
        if process is None:
            return
        self._exit_code = code
        self._served = self._loop.now() - process.ready_since if process.ready_since else None
        self.last_exit = process.epitaph(code)
        hopeless = process.last_words or "it refused to run"
        self._happened(event, hopeless if code == fork.EXIT_NEVER else self.last_exit)

    # Actions

    def _forget(self) -> None:
        self._policy.forget()

    def _locate(self) -> None:
        self._inbox.cancel_deadline()
        self.attachment.locate()

    def _look(self) -> None:
        self._inbox.due_in(self.attachment.wait())

    def _spawn(self) -> None:
        if reason := self.neighbour.forbids(self) if self.neighbour else "":
            self._happened(Event.REFUSED, reason)
            return
        self._served = self._exit_code = None
        self.scoreboard.begin()
        try:
            self.process = self._begin()
        except EvidenceRefused as reason:
            self._happened(Event.REFUSED, str(reason))
        except OSError as error:
            self.last_exit = f"cannot be forked: {limits.explained(error)}"
            self._log.error(self.config.name, self.last_exit)
            self._happened(Event.UNFORKED, self.last_exit)

    def _begin(self) -> AgentProcess:
        return AgentProcess.begin(self._loop, self._assignment, self, self._services.evidence)

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
            state_dir=self._services.state_dir,
            init_user=self.attachment.init_user,
            filters=Filters.of_agent(self.config, self.route, is_counted=lease is not None),
            supervisor_pid=os.getpid(),
            require=self._services.require,
            beat_every=self.beat_every,
            empty=self._services.empty,
            dead=self._services.dead.limits,
            counter=lease,
            held_fd=self._held_socket.fd(),
        )

    def _welcome(self) -> None:
        if (process := self.process) is not None:
            process.stage = Stage.SERVING
            process.ready_since = self._loop.now()
            process.ready_at = round(time.time(), 3)
            process.places = process.report.get("places")
            process.confinement = procfs.confinement(process.child.pid, process.report.get("landlock"))
            self._agent_log.ready(process.child.pid, self.config, process.report)

    def _drain(self) -> None:
        self.send_order("drain")
        self._inbox.due_in(DRAIN_LIMIT)

    def _note_drained(self) -> None:
        if self.process is not None:
            self.process.drained = True
        if self.neighbour is not None:
            self.neighbour.drained()

    def _order_exit(self) -> None:
        if self.process is not None:
            self.process.stage = Stage.LEAVING
        self.send_order("exit")
        self._inbox.due_in(EXIT_LIMIT)

    def _kill(self) -> None:
        self._inbox.cancel_deadline()
        if self.process is not None:
            self.process.stage = Stage.KILLED
            self.process.child.kill()

    def _log_exit(self) -> None:
        self._log.info(self.config.name, f"stopped: pid {self.pid}")
        self._detach_process()

    def _log_death(self) -> None:
        self._log.warning(self.config.name, f"pid {self.pid} died: {self.last_exit}")
        self.restarts += 1
        self._detach_process()

    def _detach_process(self) -> None:
        process, self.process = self.process, None
        if process is not None and not process.is_reaped:
            process.detach()
            self._loop.call_later(LINGER_LIMIT, lambda: self._note_if_stuck(process))

    def _note_if_stuck(self, process: AgentProcess) -> None:
        if not process.is_reaped:
            why = "it is stuck in the kernel while its files are closed, and keeps its namespace"
            self._log.error(self.config.name, f"pid {process.child.pid}, now replaced, does not end: {why}")

    def _back_off(self) -> None:
        by_signal = (self._exit_code or 0) < 0
        now = self._loop.now()
        delay = self._policy.died(now, self._served, by_signal, random.random())  # noqa: S311  (jitter)
        delay = delay or self._services.restarts.delay(now)
        if delay:
            self._inbox.due_in(delay)
        else:
            self._happened(Event.DUE)

    def _report(self) -> None:
        self._log.error(self.config.name, f"{self.detail}; it stays stopped until nsbridgectl start")

    def _finish(self) -> None:
        self.attachment.abandon()
        self._agent_log.left_behind(self.pending, str(journal_path(self._services.state_dir, self.config.name, "out")))

    def _resume(self) -> None:
        self._happened(Event.START)
