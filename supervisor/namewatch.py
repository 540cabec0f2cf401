"""A container of an engine that is renamed while it is served: status says so, and the name's new owner is followed.

A configuration names a container, and an engine may give that name to another one (`docker rename web old; docker run
--name web`). The rule: the agent serves the container that it has entered, under whatever name, until another *running*
container has the configured name. Then it leaves the one and enters the other, as after a restart of a container.

An engine's events would tell at once, but need a child all the time. So the engine is asked every so often, by the
container's id; by the name only if that has changed. All questions of one moment share a child (asker.py).
"""

from __future__ import annotations

from collections.abc import Callable

from nsbridge.agents.loop import Loop, Timer
from nsbridge.config.schema import Container, ContainerKind
from nsbridge.supervisor.arrivals import Arrivals
from nsbridge.supervisor.asker import Answer, Inquiry
from nsbridge.supervisor.identity import Found

EVERY = {ContainerKind.DOCKER: 10.0, ContainerKind.PODMAN: 60.0}  # seconds; podman's command costs 75 ms of a core


class NameWatch:
    """Of one container that is served; `moved` is called with the reason once another one has its name."""

    def __init__(
        self, loop: Loop, arrivals: Arrivals, container: Container, found: Found, moved: Callable[[str], None]
    ) -> None:
        self.serves = ""  # what the container is called now, as a configuration would; empty: as it is configured
        self._loop = loop
        self._arrivals = arrivals
        self._container = container
        self._found = found
        self._moved = moved
        self._inquiry: Inquiry | None = None
        self._timer: Timer | None = None
        self._wait()

    @property
    def note(self) -> str:
        """What status says of it; empty if there is nothing to say."""
        if not self.serves:
            return ""
        return f"serves {self.serves}, which was {self._container}; no other container of that name runs"

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._inquiry is not None:
            self._inquiry.cancel()

    def _wait(self) -> None:
        """Ask when others ask as well: at the multiples of the period."""
        period = EVERY[self._container.kind]
        self._timer = self._loop.call_at((self._loop.now() // period + 1) * period, self._ask)

    def _ask(self) -> None:
        served = Container(self._container.kind, self._found.engine_id)
        self._inquiry = self._arrivals.ask(served, self._named, seen=False)

    def _named(self, answer: Answer) -> None:
        """It has that name now; an engine that does not answer says nothing."""
        self._inquiry = None
        if not isinstance(answer, Found) or not answer.is_same(self._found):
            self._wait()
        elif answer.engine_name == self._container.name:
            self.serves = ""
            self._wait()
        else:
            self.serves = f"{self._container.kind}:{answer.engine_name}"
            self._inquiry = self._arrivals.ask(self._container, self._owned, seen=False)

    def _owned(self, answer: Answer) -> None:
        """The name's new owner, if there is one that runs."""
        self._inquiry = None
        if isinstance(answer, Found) and not answer.is_same(self._found):
            self._moved(f"names another container now (pid {answer.pid}): the previous one is {self.serves}")
        else:
            self._wait()


def watch_name(
    loop: Loop, arrivals: Arrivals, container: Container, found: Found, moved: Callable[[str], None]
) -> NameWatch | None:
    """Return a watch where a container can lose its name: one of an engine, that is not configured by its id."""
    if container.kind not in EVERY or not found.engine_id or found.engine_name != container.name:
        return None
    return NameWatch(loop, arrivals, container, found, moved)
