"""Demo from the first container to the last trace removed: read this first."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from nsbridge.config.errors import EXIT_FAILED, EXIT_OK, NsbridgeError, UsageError
from nsbridge.supervisor.cli import render
from nsbridge.supervisor.cli.demo import runtimes
from nsbridge.supervisor.cli.demo.bridge import Bridge, DemoDaemon
from nsbridge.supervisor.cli.demo.containers import DemoContainer, Role
from nsbridge.supervisor.cli.demo.screen import Screen
from nsbridge.supervisor.cli.demo.waiting import Interrupted, Lines, Waits

MESSAGES = (b"hello", "grüß dich, 世界".encode(), b"files on one side, a SysV queue on the other")
ANSWER_LIMIT = 20.0  # seconds for one message to come back


def run(runtime: str, messages: Sequence[str], demo: type[Demo]) -> int:
    """Run a demo with `messages`; if empty, with lines typed at a terminal, otherwise three of our own.

    Return 0 if every message came back equal (also when Ctrl-C ended it), 1 if not, 128 + signal for TERM and HUP.
    Raises NsbridgeError. Whatever happens, nothing is left behind.
    """
    given = tuple(os.fsencode(message) for message in messages)
    for message in given:
        if b"\n" in message:
            raise UsageError(f"the message {message!r} has a newline in it: the demo's client sends lines")
    screen = Screen()
    try:
        with Waits() as waits:
            return demo(screen, waits).run(runtime, given)
    except BrokenPipeError:  # the reader of the output has gone, and the messages were not all shown
        return EXIT_FAILED


class Demo:
    """One host, two containers, one route."""

    def __init__(self, screen: Screen, waits: Waits) -> None:
        self.screen = screen
        self.waits = waits
        self._sent = 0
        self._equal = 0
        self._victim = Role.SERVER  # whose agent is killed next

    def run(self, runtime: str, messages: tuple[bytes, ...]) -> int:
        """Show everything, remove it, and return the exit code."""
        ended_by = None
        with ExitStack() as stack:
            try:
                self.show(stack, runtime, messages)
            except Interrupted as interrupted:
                ended_by = interrupted.signum
                self.screen.end_line()
                self.screen.step(f"{ended_by.name}: stopping")
        self.screen.step("stopped the daemon and both containers, and removed all that was made for them")
        if ended_by not in (None, signal.SIGINT):
            return 128 + int(ended_by or 0)
        return self._verdict()

    def show(self, stack: ExitStack, runtime: str, messages: tuple[bytes, ...]) -> None:
        """Make everything, and show it; `stack` removes it."""
        self.screen.step("nsbridge demo: two containers that share no namespace, and the bridge between them")
        site, client, server = runtimes.make(runtime, self.screen, self.waits, stack)
        bridge = Bridge(site, client, server)
        self.screen.step(
            f"nsbridged, pid {bridge.pid}: one agent joins client's mnt namespace, the other server's ipc namespace"
        )
        bridge.wait_running()
        interactive = not messages and sys.stdin.isatty() and sys.stdout.isatty()
        if interactive:
            self._converse(bridge, client)
        else:
            self._relay(bridge, client, messages or MESSAGES)

    def _relay(self, bridge: Bridge, client: DemoContainer, messages: tuple[bytes, ...]) -> None:
        """Show messages, a killed agent, and the first message again."""
        count = "a message" if len(messages) == 1 else f"{len(messages)} messages"
        self.screen.step(f"{count}: from client's file, over both agents, through server's queue, and back")
        for message in messages:
            self.exchange(bridge, client, message)
        self._show_status(bridge)
        before = self._kill(bridge)
        self.exchange(bridge, client, messages[0])
        self._show_recovery(bridge, before)

    def _converse(self, bridge: Bridge, client: DemoContainer) -> None:
        """Send the person's lines."""
        self._show_status(bridge)
        self.screen.step("type a line: it goes to server and back (an empty line or Ctrl-D ends)")
        typed = Lines(sys.stdin.fileno(), self.waits)
        killed: dict[str, dict[str, Any]] = {}
        offered = False
        while True:
            self.screen.prompt()
            line = typed.next(None)
            if line is None:
                self.screen.end_line()
                return
            if not line:
                return
            if line.strip() == b"kill" and not killed:
                killed = self._kill(bridge)
                continue
            self.exchange(bridge, client, line)
            if killed:
                self._show_recovery(bridge, killed)
                killed = {}
            if not offered:
                self.screen.step("type kill to SIGKILL an agent, then send another line")
                offered = True

    def exchange(self, bridge: DemoDaemon, client: DemoContainer, message: bytes) -> None:
        """Send one message through the client, and show what the client says to it."""
        self._sent += 1
        client.write_line(message)
        try:
            answer = client.lines.next(ANSWER_LIMIT)
        except TimeoutError:
            raise NsbridgeError(bridge.explain(f"no answer within {ANSWER_LIMIT:g} s")) from None
        if answer is None:
            raise NsbridgeError(bridge.explain("the client has ended"))
        self.screen.program(answer)
        self._equal += answer == b"Recv " + message

    def _kill(self, bridge: Bridge) -> dict[str, dict[str, Any]]:
        """Kill an agent, a different one each time; return the agents as they were before."""
        before = bridge.wait_running()
        agent = before[self._victim]
        self.screen.step(f"killing agent {agent['name']} (kill -9 {agent['pid']}): the next message meets a dead agent")
        os.kill(int(agent["pid"]), signal.SIGKILL)
        self._victim = Role.CLIENT if self._victim is Role.SERVER else Role.SERVER
        return before

    def _show_recovery(self, bridge: Bridge, before: dict[str, dict[str, Any]]) -> None:
        """Say what became of both agents."""
        after = bridge.wait_running()
        self._show_status(bridge)
        for role, agent in after.items():
            name, pid, restarts = agent["name"], agent["pid"], agent["restarts"]
            if pid == before[role]["pid"]:
                self.screen.detail(f"{name} noticed nothing: still pid {pid}, restarts {restarts}")
            else:
                self.screen.detail(f"{name} is back: pid {before[role]['pid']} is now pid {pid}, restarts {restarts}")

    def _show_status(self, bridge: Bridge) -> None:
        self.screen.step("nsbridgectl status:")
        self.screen.table(render.status(bridge.settled_status(), colour=self.screen.colour))

    def _verdict(self) -> int:
        if self._equal == self._sent:
            if self._sent:
                self.screen.step(f"{self._equal} of {self._sent} messages came back, each as it was sent")
            return EXIT_OK
        self.screen.wrong(f"only {self._equal} of {self._sent} messages came back as they were sent")
        return EXIT_FAILED
