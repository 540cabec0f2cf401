"""Notices that an engine's container was renamed: status shows it, and the agent follows the name's new owner.

A configuration names a container, and an engine may give that name to another one (`docker rename web old; docker run
--name web`). The agent serves the container that it has entered, under any name, until another *running* container has
the configured name. Then it leaves the first and enters the second, as after a restart.

An engine's events would be faster, but need a permanent child. So the engine is polled: by the container's id, and if
that container's name has changed, also by the configured name.
"""

from __future__ import annotations

from collections.abc import Callable

from nsbridge.agents.loop import Loop
from nsbridge.config.schema import Container
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.containers.asker import Located
from nsbridge.supervisor.containers.engines import engine_of
from nsbridge.supervisor.containers.identity import Found
from nsbridge.supervisor.containers.matchwatch import MatchWatch
from nsbridge.supervisor.containers.servedname import ServedName


class NameWatch(ServedName):
    """Calls `moved` once another container has the name."""

    @property
    def note(self) -> str:
        """Return the note for status; empty if the name is unchanged."""
        if not self.serves:
            return ""
        return f"serves {self.serves}, which was {self._container}; no other container of that name runs"

    def _ask(self) -> None:
        self._inquire(Container(self._container.kind, self._found.engine_id), self._named)

    def _named(self, answer: Located) -> None:
        """Handle the answer by id: the container's present name. Ignore an engine that does not answer."""
        if not isinstance(answer, Found) or not answer.is_same(self._found):
            self._wait()
        elif answer.engine_name == self._container.name:
            self.serves = ""
            self._wait()
        else:
            self.serves = f"{self._container.kind}:{answer.engine_name}"
            self._inquire(self._container, self._owned)

    def _owned(self, answer: Located) -> None:
        """Handle the answer by name: the name's new owner, if there is one that runs."""
        if isinstance(answer, Found) and not answer.is_same(self._found):
            self._moved(f"names another container now (pid {answer.pid}): the previous one is {self.serves}")
        else:
            self._wait()


def watch_name(
    loop: Loop, arrivals: Arrivals, container: Container, found: Found, moved: Callable[[str], None]
) -> ServedName | None:
    """Return a watch if the name may later lead to another container. None if it cannot, as with a container's id."""
    engine = engine_of(container.kind)
    if engine.matches_several:
        return MatchWatch(loop, arrivals, container, found, moved)
    if not engine.name_checked_every or not found.engine_id or found.engine_name != container.name:
        return None
    return NameWatch(loop, arrivals, container, found, moved)
