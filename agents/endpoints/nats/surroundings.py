"""Decides the user of an agent of the `nats` endpoint (agents/identity/surroundings.py)."""

from __future__ import annotations

from nsbridge.agents.identity.identity import Ids
from nsbridge.agents.identity.surroundings import Surroundings

NOBODY = Ids(65534, 65534)  # the user without any file: the endpoint has no owner


class NatsSurroundings(Surroundings):
    """The endpoint is no file: the agent is the configured user, or nobody."""

    def look(self) -> tuple[int, int]:
        """See Surroundings."""
        who = self._decide("NATS", None, NOBODY)
        self.uid = who.uid
        self._remember(who, is_certain=self._agent.user is not None)
        return who

    def recheck(self) -> None:
        """Do nothing: the endpoint has no owner."""
