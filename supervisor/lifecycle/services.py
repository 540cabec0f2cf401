"""The parts of the daemon that the manager of every agent uses."""

from __future__ import annotations

from dataclasses import dataclass, field

from nsbridge.agents.confinement.emptyns import EmptyNamespace
from nsbridge.agents.loop import Loop
from nsbridge.config.schema import Confinement, DeadConfig, Evidence, HealthConfig
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.lifecycle.evidence import CounterLeases
from nsbridge.supervisor.lifecycle.startqueue import StartQueue
from nsbridge.supervisor.log.events import Events
from nsbridge.supervisor.log.log import Log


@dataclass(slots=True)
class DeadLetterLimits:
    """The quota of dead letters for every agent; a reload changes it for present and future agents."""

    limits: DeadConfig = field(default_factory=DeadConfig)


@dataclass(frozen=True, slots=True)
class Services:
    """One for a daemon; handed down from supervisor.py."""

    loop: Loop
    log: Log
    events: Events
    state_dir: str
    arrivals: Arrivals
    health: HealthConfig
    require: tuple[Confinement, ...] = ()  # what no agent may run without
    empty: tuple[EmptyNamespace, ...] = ()  # namespaces that agents join instead of staying in the host's
    dead: DeadLetterLimits = field(default_factory=DeadLetterLimits)
    restarts: StartQueue = field(default_factory=StartQueue)
    evidence: CounterLeases = field(default_factory=lambda: CounterLeases(Evidence.SENDERS, "", lambda _text: None))
