"""Examines the queue of an agent before the agent is confined (agents/identity/surroundings.py)."""

from __future__ import annotations

from collections.abc import Sequence

from nsbridge.agents.confinement.entry import Assignment, Gone
from nsbridge.agents.endpoints.queue import queue
from nsbridge.agents.identity.identity import IdMap, Ids, UserRecord
from nsbridge.agents.identity.surroundings import Surroundings
from nsbridge.agents.identity.walk import Step, redirector, redirects


class QueueSurroundings(Surroundings):
    """`keys` are numbers, 0 for a side that is not configured. The queue's sides notice a new owner themselves.

    `made_of` are the paths of which keys were made, each with who could make it lead elsewhere: to another queue's key.
    """

    def __init__(
        self,
        assignment: Assignment,
        ids: IdMap,
        memory: UserRecord,
        keys: Sequence[int],
        made_of: Sequence[tuple[bytes, Sequence[Step]]] = (),
    ) -> None:
        super().__init__(assignment, ids, memory)
        self._keys = [key for key in keys if key]
        self._made_of = made_of

    def look(self) -> tuple[int, int]:
        """Return the owner of the queue, or its future owner."""
        found = [(key, owner) for key in self._keys if (owner := queue.owner(key))]
        key, owner = found[0] if found else (self._keys[0], None)
        who = self._decide(queue.shown(key), Ids(*owner) if owner else None, self._init)
        for path, steps in self._made_of:
            if step := redirector(steps, self._ids.trusted | {who.uid}):
                raise Gone(redirects(step, path))
        self._remember(who, is_certain=owner is not None or self._agent.user is not None)
        return who

    def recheck(self) -> None:
        """Do nothing: the queue's sides notice a new owner themselves."""
