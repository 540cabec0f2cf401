"""A hostile container, another one, and a daemon with routes between them of which one must never notice anything."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.system.conftest import Factory
from tests.system.hostile import Variant
from tests.system.nsbridged import kill_and_wait
from tests.system.room import crowd, wait_until
from tests.system.traffic import visible

_AGENT = '[route.{}.agent.{}]\ncontainer = "{}"\n{} = {{ {} }}\n'


def spools(route: str, evil: str, peer: str) -> str:
    """Return a route between /srv/ROUTE/out, in and done of the hostile container and the other's /srv/ROUTE/out and
    in.
    """
    more = f', done = "/srv/{route}/done", max_message = 10000'
    return _pair(route, "spool", evil, peer, more)


def files(route: str, kind: str, evil: str, peer: str) -> str:
    """Return the same between two files each, of the `log` or `file` endpoint."""
    return _pair(route, kind, evil, peer, "")


def _pair(route: str, kind: str, evil: str, peer: str, more: str) -> str:
    paths = f'out = "/srv/{route}/out", in = "/srv/{route}/in"'
    return _AGENT.format(route, "evil", evil, kind, paths + more) + _AGENT.format(route, "peer", peer, kind, paths)


def dead_end(evil: str, peer: str) -> str:
    """Return a route `dead` from a spool to a log of lines, which takes no message with a newline."""
    return _AGENT.format("dead", "evil", evil, "spool", 'out = "/srv/dead/out"') + _AGENT.format(
        "dead", "peer", peer, "log", 'in = "/srv/dead/in"'
    )


def healthy(peer: str) -> str:
    """Return a route `h` from the other container to itself."""
    paths = 'out = "/srv/h/out{0}", in = "/srv/h/in{0}"'
    return _AGENT.format("h", "one", peer, "spool", paths.format(1)) + _AGENT.format(
        "h", "two", peer, "spool", paths.format(2)
    )


class Scene:
    """A running daemon, and /srv of the hostile container and of the other."""

    def __init__(self, daemon: Variant, evil: Path, peer: Path) -> None:
        self.daemon = daemon
        self.evil = evil
        self.peer = peer
        self._numbers = itertools.count(1)

    def sent(self, directory: Path, name: str = "") -> bytes:
        """Put a new message into a spool, and return it."""
        number = next(self._numbers)
        body = b"message %d" % number
        hidden = directory / f".{number}"
        hidden.write_bytes(body)
        hidden.rename(directory / (name or f"{number:06d}"))
        return body

    def passes(self, source: Path, sink: Path, within: float = 20.0) -> None:
        """Assert that a message put there arrives here."""
        body, started = self.sent(source), time.monotonic()
        wait_until(lambda: body in contents(sink), f"{source} to {sink}; log:\n{self.daemon.said()}", 20)
        assert time.monotonic() - started < within * crowd()

    def everything_passes(self, within: float = 20.0) -> None:
        """Assert that a message passes in each direction of the healthy route, and of the route `s` of spools."""
        self.healthy_passes(within)
        self.passes(self.evil / "s/out", self.peer / "s/in", within)
        self.passes(self.peer / "s/out", self.evil / "s/in", within)

    def healthy_passes(self, within: float = 20.0) -> None:
        """Assert that messages pass in both directions."""
        for one, other in (("1", "2"), ("2", "1")):
            self.passes(self.peer / f"h/out{one}", self.peer / f"h/in{other}", within)

    def agent(self, name: str) -> dict[str, Any]:
        """Return the agent's part of the status."""
        return self.daemon.agents()[name]

    def begin_anew(self, name: str, before: int) -> None:
        """Wait for a process other than that one, which may have died by itself."""
        with suppress(ProcessLookupError):
            kill_and_wait(before)

        def is_back() -> bool:
            agent = self.agent(name)
            return bool(agent["state"] == "RUNNING" and agent["pid"] != before)

        wait_until(is_back, "there is a new process")

    def undisturbed(self, *names: str) -> None:
        """Assert that none of these was ever started again, and that the supervisor is still the first."""
        assert [self.agent(name)["restarts"] for name in names] == [0] * len(names), self.daemon.said()
        assert self.daemon.process is not None
        assert self.daemon.process.poll() is None


def contents(directory: Path) -> set[bytes]:
    """Return all messages in a spool; those that are taken meanwhile are left out."""
    found = set()
    for name in visible(directory):
        with suppress(OSError):
            found.add((directory / name).read_bytes())
    return found


@contextmanager
def scene(tmp_path: Path, make: Factory, *kinds: str, variants: str = "provoked") -> Iterator[Scene]:
    """Yield a scene with a route `s` of spools, one `h` beside it, and the named ones of `log`, `file` and `dead`."""
    evil, peer = make(), make()
    with scene_of(tmp_path, evil, peer, *kinds, variants=variants) as made:
        yield made


@contextmanager
def scene_of(tmp_path: Path, evil: Any, peer: Any, *kinds: str, variants: str = "provoked") -> Iterator[Scene]:
    """Yield the same with containers that are there."""
    for root, names in ((evil.rootfs, ("s", *kinds)), (peer.rootfs, ("s", "h", *kinds))):
        for name in names:
            (root / "srv" / name).mkdir()
    routes = spools("s", evil.spec, peer.spec) + healthy(peer.spec)
    for kind in kinds:
        routes += dead_end(evil.spec, peer.spec) if kind == "dead" else files(kind, kind, evil.spec, peer.spec)
    with Variant(tmp_path, routes, variants) as daemon:
        daemon.wait_for("RUNNING")
        yield Scene(daemon, evil.rootfs / "srv", peer.rootfs / "srv")
