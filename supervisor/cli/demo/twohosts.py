"""The demo of two hosts: the same two programs, each on a host of its own, and a real nats-server between them.

host 1: client's file ── nsbridged ──┐                  ┌── nsbridged ── server's queue :host 2
                                     └── nats-server ───┘
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from importlib.util import find_spec

from nsbridge.config.errors import NotPermittedError, NsbridgeError
from nsbridge.supervisor.cli import render
from nsbridge.supervisor.cli.demo import hosts, runtimes
from nsbridge.supervisor.cli.demo.bridge import DemoDaemon, filled
from nsbridge.supervisor.cli.demo.containers import DemoContainer, Site
from nsbridge.supervisor.cli.demo.hosts import Host, NatsServer
from nsbridge.supervisor.cli.demo.scenario import MESSAGES, Demo

_STREAMS = ("THERE", "BACK")
_ROUTE = """\
[route.echo.agent.here]
container = {container}
%s

[route.echo.agent.far]                # publishes to one stream, takes from the other
container = "host"

[route.echo.agent.far.nats]
servers   = [{url}]
in        = {{ subject = {to} }}
out       = {{ stream = {back}, subject = {back}, durable = "demo" }}
"""
_FILE = "file      = {{ out = {file_out}, in = {file_in} }}"
_QUEUE = "queue     = {{ in = {{ key = 0x4d2, type = 1 }}, out = {{ key = 0x4d2, type = 2 }} }}"


class TwoHosts(Demo):
    """Two hosts, a container on each, and NATS between."""

    def show(self, stack: ExitStack, runtime: str, messages: tuple[bytes, ...]) -> None:
        """See Demo."""
        if os.geteuid() != 0:
            raise NotPermittedError("--two-hosts makes network namespaces and needs root: use sudo")
        if find_spec("nats") is None:
            raise NsbridgeError('--two-hosts needs nats-py, which is not installed: pip install "nsbridge[nats]"')
        hosts.tool("nats-server", "nats-server")
        self.screen.step("nsbridge demo: two hosts, a container on each, and NATS JetStream between them")
        site, client, server = runtimes.make(runtime, self.screen, self.waits, stack)
        one, two = (Host(site, f"host{number}", address) for number, address in enumerate(hosts.ADDRESSES, 1))
        hosts.join(one, two)
        self.screen.step("two hosts: mount and network namespaces of their own, and a cable between them")
        for host in (one, two):
            self.screen.detail(f"{host.name}  {host.address}  net namespace {host.namespace('net')}")
        nats = NatsServer(site, one)
        nats.start(_STREAMS)
        self.screen.step(
            f"nats-server, pid {nats.pid}, on {one.name}, with the streams {' and '.join(_STREAMS)} in files"
        )
        first, second = _daemon(site, one, client, _FILE, _STREAMS), _daemon(site, two, server, _QUEUE, _STREAMS[::-1])
        self.screen.step(
            f"nsbridged on each: pid {first.pid} joins client with NATS, pid {second.pid} NATS with server"
        )
        for daemon in (first, second):
            daemon.wait_running()
        messages = messages or MESSAGES
        self.screen.step("client's file → nsbridged → NATS → nsbridged → server's queue, and back")
        for message in messages:
            self.exchange(first, client, message)
        self._strike(nats, second)
        self.exchange(first, client, messages[0])
        for host, daemon in ((one, first), (two, second)):
            daemon.wait_running()
            self.screen.step(f"nsbridgectl status on {host.name}:")
            self.screen.table(render.status(daemon.settled_status(), colour=self.screen.colour))

    def _strike(self, nats: NatsServer, daemon: DemoDaemon) -> None:
        agent = daemon.wait_running()["far"]
        self.screen.step(f"kill -9 of host2's agent {agent['name']} ({agent['pid']}), and of nats-server ({nats.pid})")
        os.kill(int(agent["pid"]), 9)
        nats.kill()
        nats.start(_STREAMS)
        self.screen.detail(f"nats-server is back, pid {nats.pid}")


def _daemon(site: Site, host: Host, container: DemoContainer, endpoint: str, streams: tuple[str, ...]) -> DemoDaemon:
    """Start nsbridged on a host, between a container and NATS."""
    to, back = streams
    values = {
        "container": container.reference,
        "file_out": f"{container.exchange}/to_server",
        "file_in": f"{container.exchange}/to_client",
        "url": f"nats://{hosts.ADDRESSES[0]}:{hosts.PORT}",
        "to": to,
        "back": back,
    }
    return DemoDaemon(Site(host.work, site.stack, site.waits), filled(_ROUTE % endpoint, values), host.enter)
