"""Notices that a name which may match several containers has come to do so while one of them is served.

A label does not name one container. While exactly one matches, its agent serves it. When another one that matches
starts (a service is scaled to two), each would get a part of the messages, so the agent leaves, and waits until one is
left. The engine is asked by the name.
"""

from __future__ import annotations

from nsbridge.supervisor.containers.asker import Located
from nsbridge.supervisor.containers.identity import Ambiguous, Found
from nsbridge.supervisor.containers.servedname import ServedName


class MatchWatch(ServedName):
    """Calls `moved` once others match as well. `serves` stays empty: labels do not change."""

    def _ask(self) -> None:
        self._inquire(self._container, self._answered)

    def _answered(self, answer: Located) -> None:
        """Handle the answer by name. Ignore an engine that does not answer: the served container still runs."""
        match answer:
            case Ambiguous():
                self._moved(f"is not the only one any more: {answer}")
            case Found() if not answer.is_same(self._found):
                self._moved(f"does not match any more: {answer.serves} does")
            case _:
                self._wait()
