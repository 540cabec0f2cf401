"""The checked configuration: frozen dataclasses, no raw dictionaries beyond this point.

The meaning of every key is in docs/configuration.md and in the commented example.toml.
Sizes are bytes, modes are permission bits, paths are absolute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.hostfiles import HostFile
from nsbridge.config.patterns import TakenNames

MAX_MESSAGE = 64 << 20  # bytes of the longest message that nsbridge carries


class Namespace(StrEnum):
    """A kind of namespace, named as under /proc/PID/ns."""

    MNT = "mnt"
    IPC = "ipc"
    NET = "net"  # only the host's own: such an agent joins none


JOINED = (Namespace.MNT, Namespace.IPC)  # those of containers, one of which an agent joins


class Delivery(StrEnum):
    """Promise that a route keeps when something is killed (docs/delivery.md)."""

    EXACTLY_ONCE = "exactly-once"
    AT_LEAST_ONCE = "at-least-once"


class Confinement(StrEnum):
    """Confinement that the kernel offers beside giving up all power, if it was built with it (docs/security.md)."""

    SECCOMP = "seccomp"
    LANDLOCK = "landlock"


class Evidence(StrEnum):
    """The evidence, after a kill, of which messages a queue's agent had sent and received."""

    AUTO = "auto"  # the counter, if it can be had
    COUNTER = "counter"  # the kernel's count
    SENDERS = "senders"  # two sender processes and the queue's last sender


class InDoubt(StrEnum):
    """Choice for the one message that may or may not have been sent, when no evidence decides."""

    RESEND = "resend"
    SKIP = "skip"


class WhenFull(StrEnum):
    """The action for a new dead letter when its agent's quota is full."""

    BLOCK = "block"
    DROP_OLDEST = "drop-oldest"


@dataclass(frozen=True, slots=True)
class Container:
    """`KIND:NAME`; `name` is empty for the host and an absolute path where the kind has no pattern."""

    kind: ContainerKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else str(self.kind)


@dataclass(frozen=True, slots=True)
class Place:
    """A place that an endpoint serves, as configured. Two places of one container are the same if `where` is equal."""

    where: Hashable
    shown: str  # as the log shows it: "queue 0x4d2"
    written: str  # as the configuration writes it: "key 0x4d2"
    path: str = ""  # of the file or directory, if it is one
    made_of: str = ""  # path of the file that makes its identity: it is known only inside the container
    number: str = ""  # its identity, if it is known without an agent
    is_local: bool = False  # True if the identity holds in one namespace only; else on the whole host
    selector: int | None = None  # of a source: the types that it takes, as msgrcv(2); None if messages have no type
    names: TakenNames | None = None  # of a source: the names of files that it takes; None if it takes no files by name
    type: int | None = None  # of a sink: the type that each message gets; None if it keeps its own, or has none
    has_last_sender: bool = False  # True if two exactly-once sinks overwrite each other's evidence of what was sent


@dataclass(frozen=True, slots=True)
class Needs:
    """The share of the host's limits that an agent needs for its endpoint."""

    watches: int = 0  # inotify instances
    tasks: int = 0  # processes and threads beside the agent itself


@dataclass(frozen=True, slots=True)
class Endpoint(ABC):
    """The endpoint of an agent. Each kind has a subclass (config/kind.py); its fields are the keys of its table."""

    out: object = None  # where messages are taken; None if there is no source
    in_: object = None  # where messages are put; None if there is no sink

    name: ClassVar[str]  # its key in the configuration; journals and identity files contain it
    namespace: ClassVar[Namespace]  # the one that its agent joins
    notes: ClassVar[int] = 0  # the number, in journals, of its notes of messages; 0 if journals hold whole messages
    has_types: ClassVar[bool] = False  # True if its messages have types, which a sink across may keep
    is_counted: ClassVar[bool] = False  # True if the kernel's counter can count its messages (Evidence)
    serves_directories: ClassVar[bool] = False  # True if `out` and `in_` are directories, whose files are messages
    waiting_size: ClassVar[int] = 0  # bytes of the list of names that wait at a source; 0 if it keeps none

    @property
    @abstractmethod
    def longest(self) -> int:
        """Return the bytes of the longest message, in both directions."""

    @abstractmethod
    def places(self) -> Mapping[str, Place]:
        """Return the places by key: out, in, then those that are no end."""

    @abstractmethod
    def needs(self, delivery: Delivery) -> Needs:
        """Return what its agent needs."""

    @property
    def ports(self) -> Collection[int]:
        """Return the TCP ports that its agent may connect to."""
        return ()

    @property
    def host_files(self) -> Collection[HostFile]:
        """Return the host's files that its agent reads before it enters."""
        return ()

    @property
    def held_socket(self) -> int | None:
        """Return the type of the Unix socket that the supervisor holds for its source; None if it needs none."""
        return None

    @property
    def keeps_names(self) -> bool:
        """True if its sink gives a message the name of the file that it was taken from."""
        return False

    def kept_name(self, name: bytes) -> bytes:
        """Return the name that its sink gives the message of a file; empty if that is no possible name."""
        return name

    def idle_keys(self) -> Mapping[str, str]:
        """Return the keys that are set and have no effect, because the endpoint lacks an end, each with that end."""
        return {}

    @property
    def journal_place(self) -> str:
        """Return the path that the messages in a source's journal belong to; empty if any place may deliver them."""
        return ""

    @property
    def writes_any_length(self) -> bool:
        """True if it writes files that are longer than the longest message."""
        return False


@dataclass(frozen=True, slots=True)
class User:
    """User that an agent runs as inside its container, as ids of the host's user namespace."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One side of a route: one container, one endpoint. `name` is ROUTE:AGENT."""

    name: str
    container: Container
    endpoint: Endpoint
    user: User | None = None  # None: the owner of the endpoint's directory, file or queue
    follows_owner: bool = False  # user = "owner": also from one unprivileged owner to another

    @property
    def namespace(self) -> Namespace:
        """Return the one namespace that the agent joins."""
        return self.endpoint.namespace


@dataclass(frozen=True, slots=True)
class Window:
    """Limit to what one direction may have taken and not yet handed over."""

    messages: int = 1024
    bytes: int = 4 << 20


@dataclass(frozen=True, slots=True)
class RouteConfig:
    """Two agents and what is promised between them."""

    name: str
    agents: tuple[AgentConfig, AgentConfig]
    delivery: Delivery = Delivery.EXACTLY_ONCE
    in_doubt: InDoubt = InDoubt.RESEND
    window: Window = Window()
    autostart: bool = True
    fsync: bool = False  # whether journals, and what was handed to files, are on the disk before anything is confirmed


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """The control socket: members of `group` may control, of `read_group` may look; root always may."""

    path: str = "/run/nsbridge/control.sock"
    mode: int = 0o660
    group: str = "root"
    read_group: str = "adm"


@dataclass(frozen=True, slots=True)
class LogConfig:
    """The daemon's log; `file` None is stderr. At `max_bytes` it is rotated, `backups` old ones are kept."""

    file: str | None = None
    level: str = "info"  # debug, info, warning, error
    format: str = "text"  # text, json (one object a line)
    max_bytes: int = 50_000_000
    backups: int = 10


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """When an agent counts as wedged, as grown too large, or as blocked for long. Seconds and bytes."""

    deadline: float = 30.0  # from an agent's last sign of life until its successor serves
    max_memory: int = 64_000_000  # of its own, beyond what its route's window and longest message may take
    max_descriptors: int = 256
    max_blocked: float = 60.0  # after so long it is reported, once (supervisor/health/blocked.py)

    @property
    def beat_every(self) -> float:
        """Return the seconds between the heartbeats of an idle agent."""
        return min(self.deadline / 3, 10.0)

    @property
    def patience(self) -> float:
        """Return the seconds an agent may stay silent; its successor needs the rest of the deadline to start."""
        return self.deadline * 2 / 3


@dataclass(frozen=True, slots=True)
class DeadConfig:
    """The quota of dead letters of each agent (agents/dead/quota.py). Bytes, and seconds."""

    max_bytes: int = 64_000_000
    max_letters: int = 10_000
    when_full: WhenFull = WhenFull.BLOCK
    max_age: float | None = None  # letters that are older are dropped; None: none are


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """Settings of the daemon as a whole."""

    state_dir: str = "/run/nsbridge"
    control: ControlConfig = ControlConfig()
    dead: DeadConfig = DeadConfig()
    log: LogConfig = LogConfig()
    require: tuple[Confinement, ...] = ()  # an agent that cannot have one of these does not run
    health: HealthConfig = HealthConfig()
    evidence: Evidence = Evidence.AUTO


@dataclass(frozen=True, slots=True)
class Config:
    """A whole checked configuration; `source` is the file's absolute path (empty if made by a program)."""

    daemon: DaemonConfig
    routes: tuple[RouteConfig, ...]
    source: str = ""
    drop_ins: tuple[str, ...] = ()  # paths of the further files (dropins.py)

    @property
    def agents(self) -> list[AgentConfig]:
        """Return the agents of all routes."""
        return [agent for route in self.routes for agent in route.agents]

    @property
    def count(self) -> str:
        """Return how many routes and drop-ins there are, in words."""
        routes, files = len(self.routes), len(self.drop_ins)
        text = f"{routes} route{'' if routes == 1 else 's'}"
        return f"{text}, {files} drop-in{'' if files == 1 else 's'}" if files else text
