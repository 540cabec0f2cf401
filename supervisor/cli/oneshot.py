"""`nsbridge bridge`: one route between two namespaces, in the foreground, as the one-process bridge was used."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from nsbridge.agents.endpoints.file import FileEndpoint
from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueIn, QueueOut
from nsbridge.config.errors import EXIT_FAILED, EXIT_OK, NotPermittedError
from nsbridge.config.schema import AgentConfig, Config, Container, DaemonConfig, LogConfig, RouteConfig
from nsbridge.supervisor.containers.engines import ns
from nsbridge.supervisor.lifecycle.agent import ManagedAgent
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.log.log import open_log
from nsbridge.supervisor.supervisor import Supervisor

_MODE = 0o666  # as the one-process bridge made files and queue: every user inside may use them


@dataclass(frozen=True, slots=True)
class BridgeRequest:
    """Request of the command line. Paths are absolute; `out` and `in_` are seen from inside the mount namespace."""

    ns_ipc: str
    ns_mnt: str
    key: int
    out: str
    in_: str
    send_type: int
    receive_type: int


def run(request: BridgeRequest) -> int:
    """Carry messages until Ctrl-C (exit code 0), or until a side has ended or cannot work (1). Raises NsbridgeError."""
    if os.geteuid() != 0:
        raise NotPermittedError("must be root to enter namespaces: run it with sudo")
    log = open_log(LogConfig())
    failures: list[str] = []

    def look(agent: ManagedAgent) -> None:
        """Do nothing: a namespace that was given by its path does not come back, so there is nothing to wait for."""
        if agent.state in (State.WAITING, State.FATAL):
            failures.append(f"{agent.config.name}: {agent.detail}")
            supervisor.stop()

    supervisor = Supervisor(_config(request), log, look)
    try:
        supervisor.run(with_control=False)
    finally:
        log.close()
    for failure in failures[:1]:
        sys.stderr.write(f"nsbridge: {failure}\n")
    return EXIT_FAILED if failures else EXIT_OK


def _config(request: BridgeRequest) -> Config:
    files = FileEndpoint(out=request.out, in_=request.in_, mode=_MODE)
    queue = QueueEndpoint(
        out=QueueOut(request.key, request.receive_type),
        in_=QueueIn(request.key, request.send_type),
        create=True,
        mode=_MODE,
    )
    agents = (
        AgentConfig("bridge:files", Container(ns.KIND, request.ns_mnt), files),
        AgentConfig("bridge:queue", Container(ns.KIND, request.ns_ipc), queue),
    )
    return Config(DaemonConfig(), (RouteConfig("bridge", agents),))
