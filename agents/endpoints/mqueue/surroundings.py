"""Examines the queues of an agent before the agent is confined (agents/identity/surroundings.py)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from nsbridge.agents.confinement.entry import Assignment
from nsbridge.agents.endpoints.mqueue.calls import all_queues
from nsbridge.agents.endpoints.mqueue.config import shown
from nsbridge.agents.endpoints.mqueue.mqueue import owner
from nsbridge.agents.identity.identity import IdMap, Ids, UserRecord
from nsbridge.agents.identity.surroundings import Surroundings


class MqueueSurroundings(Surroundings):
    """`names` are those of the queues, the source's first. The sides notice a new owner themselves."""

    def __init__(self, assignment: Assignment, ids: IdMap, memory: UserRecord, names: Sequence[str]) -> None:
        super().__init__(assignment, ids, memory)
        self._names = names
        self._directories: list[int] = []

    def look(self) -> tuple[int, int]:
        """Return the owner of the first queue that is there, or its future owner."""
        with suppress(OSError):  # Landlock, if there is any, then refuses the queues
            self._directories = [all_queues()]
        found = [(name, owned) for name in self._names if (owned := owner(name))]
        name, owned = found[0] if found else (self._names[0], None)
        who = self._decide(shown(name), Ids(*owned) if owned else None, self._init)
        self._remember(who, is_certain=owned is not None or self._agent.user is not None)
        return who

    def reach(self) -> Sequence[int]:
        """Return the directory of all queues: it is the kernel's own, and no link or mount of the container's."""
        return self._directories

    def recheck(self) -> None:
        """Do nothing: the sides notice a new owner themselves."""
