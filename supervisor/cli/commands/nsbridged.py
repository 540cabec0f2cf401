"""The command line of nsbridged."""

from __future__ import annotations

from nsbridge.supervisor.cli.commands import values
from nsbridge.supervisor.cli.commands.model import EXIT_CODES, PATH, Command, Option, Program, Value, about

DEFAULT_CONFIG = "/etc/nsbridge/nsbridge.toml"

PROGRAM = Program(
    Command(
        "nsbridged",
        "carries messages between containers that share no namespace",
        "Carries messages between containers that share no namespace, as its configuration says, in the foreground "
        "(for systemd, runit, a terminal). Each route has two agents; each joins one namespace of one container, and "
        "is started again when it dies and when its container comes back. nsbridgectl asks and steers it.",
        options=(
            Option(
                "-c --config",
                f"the configuration (default: {DEFAULT_CONFIG})",
                Value("FILE", values.path, PATH),
                DEFAULT_CONFIG,
            ),
            Option("--check", "say whether the configuration is right, warn of what this host lacks for it, and end"),
            Option("--daemon", "detach; returns when the daemon is ready, and says where its log is if no file has it"),
            *about("nsbridged"),
        ),
    ),
    section=8,
    notes=(
        (
            "signals",
            (
                ("TERM, INT", "stop in order: take no more, hand over what is in flight, end"),
                ("HUP", "read the configuration again, and touch only what has changed"),
                ("USR1", "open the log file anew, after it was moved away"),
            ),
        ),
        ("exit codes", tuple(code for code in EXIT_CODES if code[0] in ("0", "1", "2", "77"))),
        (
            "files",
            (
                (DEFAULT_CONFIG, "the configuration: nsbridge.toml(5)"),
                (
                    "/etc/nsbridge/nsbridge.d/*.toml",
                    "further routes, in the order of names; FILE.d beside any FILE.toml",
                ),
                ("/run/nsbridge", "journals, dead letters, pid file and control socket, unless it says otherwise"),
            ),
        ),
        (
            "environment",
            (
                ("DOCKER_HOST", "unix:// and the path where Docker is asked"),
                ("CONTAINER_HOST", "unix:// and the path where Podman is asked"),
                ("NOTIFY_SOCKET", "where systemd expects READY, STATUS, WATCHDOG and STOPPING"),
            ),
        ),
        (
            "examples",
            (
                ("nsbridged --check", "is the configuration right?"),
                ("nsbridged -c ./nsbridge.toml", "in the foreground, with another configuration"),
            ),
        ),
    ),
    see_also=("nsbridgectl(1)", "nsbridge(1)", "nsbridge.toml(5)"),
)
