"""The life of an agent as a table: (state, event) → (state, actions). No system call, clock or log in here.

Everything that decides about an agent's state stands in TABLE; a pair that is not listed is a programming error and
raises. Who feeds the events and carries the actions out is agent.py; docs/lifecycle.md is drawn from this table.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What `status` shows."""

    STOPPED = "STOPPED"  # nobody wants it to run
    STARTING = "STARTING"  # its container is looked for, then it is forked and enters
    RUNNING = "RUNNING"  # it has said that it is ready
    STOPPING = "STOPPING"  # it hands over what is in flight, then it is told to exit
    BACKOFF = "BACKOFF"  # it died; the next try is due at a time
    WAITING = "WAITING"  # its container is not running; that costs no restart
    FATAL = "FATAL"  # only a person can mend it


class Event(StrEnum):
    """What happens to an agent."""

    START = "start"  # somebody wants it to run
    STOP = "stop"  # somebody wants it not to
    FOUND = "found"  # the container runs
    ABSENT = "absent"  # the container does not run
    READY = "ready"  # the agent is inside and serves
    DIED = "died"  # the agent's process has ended
    GONE = "gone"  # the container's init has ended
    REFUSED = "refused"  # it can never work as things are
    DUE = "due"  # the deadline of this state has come, or a hint that the awaited container has


class Action(StrEnum):
    """What is to be done, in the order given."""

    LOCATE = "locate"  # look for the container: FOUND, ABSENT or REFUSED follows
    SPAWN = "spawn"  # fork the agent: READY, DIED or REFUSED follows
    DRAIN = "drain"  # let it hand over and exit, within a limit: DIED or DUE follows
    KILL = "kill"  # SIGKILL it if it lives
    RETRY = "retry"  # DUE after the restart policy's delay
    LOOK = "look"  # DUE after a while, to look for the container again


S, E, A = State, Event, Action

TABLE: dict[tuple[State, Event], tuple[State, tuple[Action, ...]]] = {
    (S.STOPPED, E.START): (S.STARTING, (A.LOCATE,)),
    (S.STOPPED, E.STOP): (S.STOPPED, ()),
    (S.STARTING, E.START): (S.STARTING, ()),
    (S.STARTING, E.FOUND): (S.STARTING, (A.SPAWN,)),
    (S.STARTING, E.ABSENT): (S.WAITING, (A.LOOK,)),
    (S.STARTING, E.READY): (S.RUNNING, ()),
    (S.STARTING, E.DIED): (S.BACKOFF, (A.RETRY,)),
    (S.STARTING, E.GONE): (S.WAITING, (A.KILL, A.LOOK)),
    (S.STARTING, E.REFUSED): (S.FATAL, ()),
    (S.STARTING, E.DUE): (S.STARTING, (A.LOCATE,)),  # the process that was refused may not be reaped yet
    (S.STARTING, E.STOP): (S.STOPPING, (A.DRAIN,)),
    (S.RUNNING, E.START): (S.RUNNING, ()),
    (S.RUNNING, E.DIED): (S.BACKOFF, (A.RETRY,)),
    (S.RUNNING, E.GONE): (S.WAITING, (A.KILL, A.LOOK)),
    (S.RUNNING, E.REFUSED): (S.FATAL, ()),
    (S.RUNNING, E.STOP): (S.STOPPING, (A.DRAIN,)),
    (S.STOPPING, E.START): (S.STOPPING, ()),  # it is started again when it has stopped
    (S.STOPPING, E.STOP): (S.STOPPING, ()),
    (S.STOPPING, E.READY): (S.STOPPING, ()),  # it was told to exit as it had nothing in flight yet
    (S.STOPPING, E.GONE): (S.STOPPING, (A.KILL,)),
    (S.STOPPING, E.DUE): (S.STOPPING, (A.KILL,)),
    (S.STOPPING, E.DIED): (S.STOPPED, ()),
    (S.STOPPING, E.REFUSED): (S.STOPPED, ()),
    (S.BACKOFF, E.START): (S.STARTING, (A.LOCATE,)),
    (S.BACKOFF, E.DUE): (S.STARTING, (A.LOCATE,)),
    (S.BACKOFF, E.GONE): (S.WAITING, (A.LOOK,)),
    (S.BACKOFF, E.STOP): (S.STOPPED, ()),
    (S.WAITING, E.START): (S.WAITING, (A.LOCATE,)),
    (S.WAITING, E.DUE): (S.WAITING, (A.LOCATE,)),
    (S.WAITING, E.FOUND): (S.STARTING, (A.SPAWN,)),
    (S.WAITING, E.ABSENT): (S.WAITING, (A.LOOK,)),
    (S.WAITING, E.REFUSED): (S.FATAL, ()),
    (S.WAITING, E.DIED): (S.WAITING, (A.LOCATE,)),  # the container may be back before its agent was gone
    (S.WAITING, E.GONE): (S.WAITING, ()),  # it was found absent before its pidfd was served
    (S.WAITING, E.STOP): (S.STOPPING, (A.DRAIN,)),  # the killed agent may not be reaped yet
    (S.FATAL, E.START): (S.STARTING, (A.LOCATE,)),
    (S.FATAL, E.STOP): (S.STOPPING, (A.DRAIN,)),  # the process that was refused may not be reaped yet
    (S.FATAL, E.DIED): (S.FATAL, ()),
    (S.FATAL, E.REFUSED): (S.FATAL, ()),  # its process has ended with the exit code that says the same
    (S.FATAL, E.GONE): (S.FATAL, ()),
}


class UnexpectedEventError(Exception):
    """The pair is not in the table."""


def step(state: State, event: Event) -> tuple[State, tuple[Action, ...]]:
    """What follows. Raises UnexpectedEventError."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise UnexpectedEventError(f"{event} in state {state}") from None
