"""The table of nsbridge's commands."""

from __future__ import annotations

from nsbridge.supervisor.cli.commands import values
from nsbridge.supervisor.cli.commands.model import (
    ANY,
    CONTAINERS,
    EXIT_CODES,
    PATH,
    Command,
    Operand,
    Option,
    Program,
    Value,
    about,
)

WEB_ADDRESS = ("127.0.0.1", 9847)
JOURNAL_LINES = 20  # pending messages that `journal` shows
CONFIG_DIRECTORY = "/etc/nsbridge"
DEMO_RUNTIMES = ("auto", "runc", "unshare")

_JSON = Option("--json", "print JSON instead of a table")

_BRIDGE = Command(
    "bridge",
    "one route between two namespaces, until Ctrl-C",
    "Carries what is written to the file OUT in the mount namespace NS_MNT to the SysV queue KEY in the ipc namespace "
    "NS_IPC, and what the queue answers to the file IN; in the foreground, until Ctrl-C. Nothing that is on its way "
    "outlives it: for that there is nsbridged.",
    options=(
        Option("--key", "the queue's key (default: 0x4d2)", Value("K", values.queue_key), 0x4D2),
        Option(
            "--out",
            "the file that leaves its container (default: /tmp/to_server)",
            Value("PATH", values.inner_path),
            "/tmp/to_server",  # noqa: S108  (inside the container, the one-process bridge's name)
        ),
        Option(
            "--in",
            "the file that what comes is written to (default: /tmp/to_client)",
            Value("PATH", values.inner_path),
            "/tmp/to_client",  # noqa: S108  (the same)
            dest="in_",
        ),
        Option(
            "--send-type",
            "the type given to messages that enter the queue (default: 1)",
            Value("N", values.sent_type),
            1,
        ),
        Option(
            "--receive-type",
            "the type taken from the queue; -N: the lowest type up to N (default: 2)",
            Value("N", values.message_type),
            2,
        ),
    ),
    operands=(
        Operand(
            "ns_ipc",
            "the queue's namespace: /proc/PID/ns/ipc",
            Value("NS_IPC", values.namespace_path, PATH),
        ),
        Operand(
            "ns_mnt",
            "the files' namespace: /proc/PID/ns/mnt",
            Value("NS_MNT", values.namespace_path, PATH),
        ),
    ),
)

_DEMO = Command(
    "demo",
    "two containers, the bridge between them, a kill -9",
    "Makes two isolated containers, an echo server on a SysV queue in one, an echo client on files in the other, and "
    "nsbridged between them; sends each MESSAGE, kills an agent with SIGKILL, sends again, and removes it all. At a "
    "terminal and without a MESSAGE it reads yours. Needs no root and nothing that is not on this machine.",
    options=(
        Option(
            "--runtime",
            "how the containers are made: runc, unshare (plain namespaces), or auto: runc if it works here",
            Value("RUNTIME", words=DEMO_RUNTIMES),
            "auto",
        ),
        Option(
            "--two-hosts",
            "a host for each container, a nats-server between: needs root, nats-server and nsbridge[nats]",
        ),
    ),
    operands=(Operand("messages", "a line of at most 8000 bytes", Value("MESSAGE"), least=0, most=ANY),),
)

_CONTAINERS = Command(
    "containers",
    "what containers this host has",
    "Lists the containers of this host by the names that a configuration can have for them, with the pid of each one's "
    "init and the inode numbers of its mount and ipc namespaces (* marks those that are this shell's own).",
    options=(_JSON,),
    operands=(
        Operand(
            "names",
            "only those whose name begins so, like docker: or runc:web; all if none is given",
            Value("NAME", completes=CONTAINERS),
            least=0,
            most=ANY,
        ),
    ),
)

_INIT = Command(
    "init",
    "a commented configuration to start from",
    "Looks at the containers of this host and at their SysV queues, and writes DIR/nsbridge.toml: every line is "
    "explained, and the example of a route names what was found. The route is commented out. A file that exists is "
    "never overwritten. nsbridged --check then says whether the edited file is right.",
    operands=(
        Operand(
            "dir", f"where the file is written (default: {CONFIG_DIRECTORY})", Value("DIR", completes=PATH), least=0
        ),
    ),
)

_JOURNAL = Command(
    "journal",
    "a journal, readable",
    "Prints a journal: STATE_DIR/journal/ROUTE/AGENT.out, what that agent has taken and the other side not yet "
    "confirmed, or AGENT.in, what it has handed over. A running daemon is not disturbed.",
    options=(Option("--all", f"every pending message, not just the first {JOURNAL_LINES}"), _JSON),
    operands=(
        Operand(
            "file",
            "the journal, like /run/nsbridge/journal/orders/web.out",
            Value("FILE", completes=PATH),
        ),
    ),
)

_WEB = Command(
    "web",
    "metrics and a page about a running daemon",
    "Serves /metrics for Prometheus, /healthz, a page with what an operator looks at, /api/status and /api/events, and "
    "changes nothing. It needs no rights but to read the control socket (root, or a member of the daemon's group or "
    "read_group), and the packages of nsbridge[web]. On an address that other hosts reach it needs --tls-cert, "
    "--tls-key and --token-file, or --insecure.",
    options=(
        Option(
            "--listen",
            f"the address to listen on (default: {WEB_ADDRESS[0]}:{WEB_ADDRESS[1]}); port 0: any that is free",
            Value("HOST:PORT", values.address),
            WEB_ADDRESS,
        ),
        Option(
            "-s --socket",
            "the daemon's control socket (default: $NSBRIDGE_CONTROL, else /run/nsbridge/control.sock)",
            Value("PATH", values.path, PATH),
        ),
        Option(
            "--tls-cert", "serve HTTPS, with this certificate and its chain (PEM)", Value("FILE", values.path, PATH)
        ),
        Option("--tls-key", "its private key (PEM)", Value("FILE", values.path, PATH)),
        Option(
            "--token-file",
            "answer only who has the token in this file: as Authorization: Bearer TOKEN, or as a browser's password",
            Value("FILE", values.path, PATH),
        ),
        Option("--insecure", "serve an address that other hosts reach without TLS and token"),
    ),
)

PROGRAM = Program(
    Command(
        "nsbridge",
        "carries messages between two containers that share no namespace",
        "A bridge for once, the demonstration, and what containers and journals there are. The daemon is nsbridged, "
        "and nsbridgectl asks and steers it.",
        options=about("nsbridge"),
        commands=(_BRIDGE, _DEMO, _CONTAINERS, _INIT, _JOURNAL, _WEB),
    ),
    section=1,
    notes=(
        ("exit codes", tuple(code for code in EXIT_CODES if code[0] in ("0", "1", "2", "77"))),
        (
            "environment",
            (
                ("DOCKER_HOST", "unix:// and the path where Docker is asked"),
                ("CONTAINER_HOST", "unix:// and the path where Podman is asked"),
                ("NSBRIDGE_CONTROL", "the control socket that web reads, where -s is not given"),
            ),
        ),
        (
            "examples",
            (
                ("nsbridge demo", "two containers and the bridge between them"),
                ("nsbridge init", f"write {CONFIG_DIRECTORY}/nsbridge.toml, if it is not there"),
                ("nsbridge bridge /proc/4711/ns/ipc /proc/4712/ns/mnt", "as the one-process bridge was used"),
                ("nsbridge journal /run/nsbridge/journal/orders/web.out", "what is taken and not yet delivered"),
                ("nsbridge web", "http://127.0.0.1:9847/, and /metrics there"),
            ),
        ),
    ),
    see_also=("nsbridgectl(1)", "nsbridged(8)", "nsbridge.toml(5)"),
)
