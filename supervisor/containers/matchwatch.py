"""Notices that a second container matches the configured name, while the first one is served.

A label may match several containers. While exactly one matches, its agent serves it. If a second one starts (a service
is scaled to two), each would get a part of the messages. So the agent leaves, and waits until only one matches. The
engine is asked by the configured name.
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
