"""The checked configuration: frozen dataclasses, no raw dictionaries beyond this point.

The meaning of every key is in docs/configuration.md and in the commented example.toml.
Sizes are bytes, modes are permission bits, paths are absolute.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nsbridge.config.containerkind import ContainerKind

MAX_MESSAGE = 64 << 20  # bytes of the longest message that nsbridge carries


class Namespace(StrEnum):
    """A kind of namespace, named as under /proc/PID/ns."""

    MNT = "mnt"
    IPC = "ipc"


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


class Framing(StrEnum):
    """Rule by which a log's messages end."""

    LINE = "line"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Container:
    """`KIND:NAME`; `name` is empty for the host and an absolute path where the kind has no pattern."""

    kind: ContainerKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else str(self.kind)


@dataclass(frozen=True, slots=True)
class FtokKey:
    """A queue key made as ftok(3) makes it, from a path inside the container and a project number (1 to 255)."""

    path: str
    proj: int


@dataclass(frozen=True, slots=True)
class QueueOut:
    """Place where messages are taken: `type` selects as msgrcv(2) does (0 any, n that type, -n the lowest up to n)."""

    key: int | FtokKey
    type: int = 0


@dataclass(frozen=True, slots=True)
class QueueIn:
    """Place where messages are put. Each gets `type`; None keeps the type it came with, 1 if it came with none."""

    key: int | FtokKey
    type: int | None = None


@dataclass(frozen=True, slots=True)
class QueueEndpoint:
    """SysV message queues in the container's ipc namespace."""

    out: QueueOut | None = None
    in_: QueueIn | None = None
    create: bool = False
    mode: int = 0o660
    max_bytes: int | None = None  # msg_qbytes of a queue that is made; None leaves the kernel's msgmnb
    max_message: int = 1 << 20  # bytes of the longest message, in both directions

    name = "queue"
    namespace = Namespace.IPC


# Names that well-known programs give to files that they have not finished: editors, browsers, copying programs.
TEMPORARY_NAMES = (
    "*.tmp",
    "*.temp",
    "*.part",
    "*.partial",
    "*.filepart",
    "*.crdownload",
    "*.swp",
    "*.swx",
    "*~",
)


@dataclass(frozen=True, slots=True)
class SpoolEndpoint:
    """Directories of files, one message a file."""

    out: str | None = None
    in_: str | None = None
    done: str | None = None  # taken files are moved here when they are delivered; None deletes them
    ignore: tuple[str, ...] = TEMPORARY_NAMES  # shell patterns of names in `out` that are not taken
    mode: int = 0o660
    max_message: int = 8 << 20

    name = "spool"
    namespace = Namespace.MNT


@dataclass(frozen=True, slots=True)
class LogEndpoint:
    """Files that are only appended to, one message after the other."""

    out: str | None = None
    in_: str | None = None
    framing: Framing = Framing.LINE
    mode: int = 0o660
    max_message: int = 8 << 20

    name = "log"
    namespace = Namespace.MNT


@dataclass(frozen=True, slots=True)
class FileEndpoint:
    """Single files: the whole content at each close is one message."""

    out: str | None = None
    in_: str | None = None
    mode: int = 0o660
    max_message: int = 8 << 20

    name = "file"
    namespace = Namespace.MNT


Endpoint = QueueEndpoint | SpoolEndpoint | LogEndpoint | FileEndpoint


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
    """When an agent counts as wedged or as grown too large. Seconds and bytes."""

    deadline: float = 30.0  # from an agent's last sign of life until its successor serves
    max_memory: int = 64_000_000  # of its own, beyond what its route's window and longest message may take
    max_descriptors: int = 256

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
