"""The life of an agent as a table: (state, event, guard) → (state, actions). No system call, clock or log in here.

Every decision about an agent's state is a row of ROWS. agent.py turns what happens into events, queues them and carries
out the actions; it decides nothing. For a pair of state and event, the first row whose guard holds counts. A pair
without a row is a programming error and raises. docs/lifecycle.md is drawn from this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The state of an agent, as `status` shows it."""

    STOPPED = "STOPPED"  # it is not wanted
    STARTING = "STARTING"  # its container is looked for, then it is forked and enters
    RUNNING = "RUNNING"  # it has reported that it is ready
    STOPPING = "STOPPING"  # it hands over what is in flight, then exits
    BACKOFF = "BACKOFF"  # it died; the next try has a deadline
    WAITING = "WAITING"  # its container is not running; this costs no restart
    FATAL = "FATAL"  # only a person can fix it


class Event(StrEnum):
    """Something that happens to an agent."""

    START = "start"  # it is wanted from now on, or released
    STOP = "stop"  # it has to stop; if it is still wanted and not held, it starts again
    EXIT = "exit"  # do not wait for what is in flight
    REFUSED = "refused"  # it can never work as things are
    FOUND = "found"  # the container runs
    ABSENT = "absent"  # the container does not run
    HINT = "hint"  # the container may have come
    GONE = "gone"  # the container's init has ended
    UNFORKED = "unforked"  # no process could be made
    READY = "ready"  # the process reports that it is inside and serves
    DRAINED = "drained"  # the process reports that it has nothing in flight
    LEFT = "left"  # the process has left user space for good; the kernel still closes its files
    DIED = "died"  # the process has ended
    DUE = "due"  # the deadline has come


class Stage(StrEnum):
    """The progress of the agent's process, from its start to its end."""

    NONE = "none"
    ENTERING = "entering"  # forked, not ready yet
    SERVING = "serving"
    LEAVING = "leaving"  # has the order to exit
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that guards test."""

    may_run: bool  # it is wanted and not held
    stage: Stage
    is_hopeless: bool  # the last process ended with the exit code EXIT_NEVER


class Guard(StrEnum):
    """A condition on the facts."""

    ALWAYS = ""
    MAY_RUN = "wanted and not held"
    NO_PROCESS = "no process"
    ENTERING = "process is entering"
    SERVING = "process serves"
    KILLED = "process was killed"
    HOPELESS = "a restart cannot help"


GUARDS: dict[Guard, Callable[[Facts], bool]] = {
    Guard.ALWAYS: lambda _facts: True,
    Guard.MAY_RUN: lambda facts: facts.may_run,
    Guard.NO_PROCESS: lambda facts: facts.stage is Stage.NONE,
    Guard.ENTERING: lambda facts: facts.stage is Stage.ENTERING,
    Guard.SERVING: lambda facts: facts.stage is Stage.SERVING,
    Guard.KILLED: lambda facts: facts.stage is Stage.KILLED,
    Guard.HOPELESS: lambda facts: facts.is_hopeless,
}


class Action(StrEnum):
    """An action to do, in the order given. An event that follows from it is handled before all that wait."""

    FORGET = "forget deaths"  # a person started it: earlier deaths do not delay it
    LOCATE = "locate"  # look for the container: FOUND, ABSENT or REFUSED follows
    LOOK = "look again"  # DUE after a while; HINT if something reports the container before
    SPAWN = "spawn"  # fork the agent: READY, LEFT, DIED, UNFORKED or REFUSED follows
    WELCOME = "welcome"  # note what it reports of itself
    DRAIN = "drain"  # order it to hand over what is in flight: DRAINED, DIED or DUE follows
    NOTE_DRAINED = "note drained"  # and report it to the route
    ORDER_EXIT = "order exit"  # LEFT, DIED or DUE follows
    KILL = "kill"  # send SIGKILL if it lives, and wait without a deadline
    LOG_EXIT = "log exit"  # release the process, which was meant to end
    LOG_DEATH = "log death"  # release the process, which was not, and count a restart
    BACK_OFF = "back off"  # DUE after the restart policy's delay, or at once
    REPORT = "report"  # log why only a person can fix it
    FINISH = "finish"  # wait for the container no longer, and log what is left behind
    RESUME = "resume"  # START follows, for it may still be wanted


S, E, G, A = State, Event, Guard, Action

Row = tuple[State, Event, Guard, State, tuple[Action, ...]]

ROWS: tuple[Row, ...] = (
    (S.STOPPED, E.START, G.MAY_RUN, S.STARTING, (A.FORGET, A.LOCATE)),
    (S.STOPPED, E.START, G.ALWAYS, S.STOPPED, ()),
    (S.STOPPED, E.STOP, G.ALWAYS, S.STOPPED, (A.RESUME,)),
    (S.STOPPED, E.EXIT, G.ALWAYS, S.STOPPED, ()),
    (S.STOPPED, E.GONE, G.ALWAYS, S.STOPPED, ()),
    # STARTING: without a process, its container is being looked for. A killed process is one that FATAL left behind.
    (S.STARTING, E.START, G.ALWAYS, S.STARTING, (A.FORGET,)),
    (S.STARTING, E.STOP, G.NO_PROCESS, S.STOPPED, (A.FINISH, A.RESUME)),
    (S.STARTING, E.STOP, G.KILLED, S.STOPPING, ()),
    (S.STARTING, E.STOP, G.ALWAYS, S.STOPPING, (A.ORDER_EXIT,)),  # it has nothing in flight
    (S.STARTING, E.REFUSED, G.ALWAYS, S.FATAL, (A.REPORT, A.KILL)),
    (S.STARTING, E.FOUND, G.ALWAYS, S.STARTING, (A.SPAWN,)),
    (S.STARTING, E.ABSENT, G.ALWAYS, S.WAITING, (A.LOOK,)),
    (S.STARTING, E.HINT, G.ALWAYS, S.STARTING, ()),
    (S.STARTING, E.GONE, G.ALWAYS, S.WAITING, (A.KILL, A.LOOK)),
    (S.STARTING, E.UNFORKED, G.ALWAYS, S.BACKOFF, (A.BACK_OFF,)),
    (S.STARTING, E.READY, G.ENTERING, S.RUNNING, (A.WELCOME,)),
    (S.STARTING, E.READY, G.ALWAYS, S.STARTING, ()),
    (S.STARTING, E.DRAINED, G.ALWAYS, S.STARTING, ()),
    (S.STARTING, E.LEFT, G.KILLED, S.STARTING, ()),  # it may still hold its namespace
    (S.STARTING, E.LEFT, G.HOPELESS, S.FATAL, (A.LOG_DEATH, A.REPORT)),
    (S.STARTING, E.LEFT, G.ALWAYS, S.BACKOFF, (A.LOG_DEATH, A.BACK_OFF)),
    (S.STARTING, E.DIED, G.KILLED, S.STARTING, (A.LOG_EXIT, A.LOCATE)),
    (S.STARTING, E.DIED, G.HOPELESS, S.FATAL, (A.LOG_DEATH, A.REPORT)),
    (S.STARTING, E.DIED, G.ALWAYS, S.BACKOFF, (A.LOG_DEATH, A.BACK_OFF)),
    (S.RUNNING, E.START, G.ALWAYS, S.RUNNING, (A.FORGET,)),
    (S.RUNNING, E.STOP, G.ALWAYS, S.STOPPING, (A.DRAIN,)),
    (S.RUNNING, E.REFUSED, G.ALWAYS, S.FATAL, (A.REPORT, A.KILL)),
    (S.RUNNING, E.GONE, G.ALWAYS, S.WAITING, (A.KILL, A.LOOK)),
    (S.RUNNING, E.READY, G.ALWAYS, S.RUNNING, ()),
    (S.RUNNING, E.DRAINED, G.ALWAYS, S.RUNNING, ()),
    (S.RUNNING, E.LEFT, G.HOPELESS, S.FATAL, (A.LOG_DEATH, A.REPORT)),
    (S.RUNNING, E.LEFT, G.ALWAYS, S.BACKOFF, (A.LOG_DEATH, A.BACK_OFF)),
    (S.RUNNING, E.DIED, G.HOPELESS, S.FATAL, (A.LOG_DEATH, A.REPORT)),
    (S.RUNNING, E.DIED, G.ALWAYS, S.BACKOFF, (A.LOG_DEATH, A.BACK_OFF)),
    # STOPPING: it always has a process. A serving one drains; a leaving one has the order to exit.
    (S.STOPPING, E.START, G.ALWAYS, S.STOPPING, ()),  # it starts again when it has stopped
    (S.STOPPING, E.STOP, G.ALWAYS, S.STOPPING, ()),
    (S.STOPPING, E.EXIT, G.SERVING, S.STOPPING, (A.ORDER_EXIT,)),
    (S.STOPPING, E.EXIT, G.ALWAYS, S.STOPPING, ()),
    (S.STOPPING, E.REFUSED, G.ALWAYS, S.STOPPING, (A.KILL,)),
    (S.STOPPING, E.HINT, G.ALWAYS, S.STOPPING, ()),
    (S.STOPPING, E.GONE, G.ALWAYS, S.STOPPING, (A.KILL,)),
    (S.STOPPING, E.READY, G.ALWAYS, S.STOPPING, ()),
    (S.STOPPING, E.DRAINED, G.ALWAYS, S.STOPPING, (A.NOTE_DRAINED,)),
    (S.STOPPING, E.LEFT, G.ALWAYS, S.STOPPING, ()),  # it may still hold its namespace
    (S.STOPPING, E.DIED, G.ALWAYS, S.STOPPED, (A.LOG_EXIT, A.FINISH, A.RESUME)),
    (S.STOPPING, E.DUE, G.SERVING, S.STOPPING, (A.ORDER_EXIT,)),
    (S.STOPPING, E.DUE, G.ALWAYS, S.STOPPING, (A.KILL,)),
    (S.BACKOFF, E.START, G.ALWAYS, S.STARTING, (A.FORGET, A.LOCATE)),
    (S.BACKOFF, E.STOP, G.ALWAYS, S.STOPPED, (A.FINISH, A.RESUME)),
    (S.BACKOFF, E.GONE, G.ALWAYS, S.WAITING, (A.LOOK,)),
    (S.BACKOFF, E.DUE, G.ALWAYS, S.STARTING, (A.LOCATE,)),
    # WAITING: it may still have the process that was killed because its container ended.
    (S.WAITING, E.START, G.NO_PROCESS, S.WAITING, (A.FORGET, A.LOCATE)),
    (S.WAITING, E.START, G.ALWAYS, S.WAITING, (A.FORGET,)),
    (S.WAITING, E.STOP, G.NO_PROCESS, S.STOPPED, (A.FINISH, A.RESUME)),
    (S.WAITING, E.STOP, G.ALWAYS, S.STOPPING, ()),
    (S.WAITING, E.REFUSED, G.ALWAYS, S.FATAL, (A.REPORT, A.KILL)),
    (S.WAITING, E.FOUND, G.ALWAYS, S.STARTING, (A.SPAWN,)),
    (S.WAITING, E.ABSENT, G.ALWAYS, S.WAITING, (A.LOOK,)),
    (S.WAITING, E.HINT, G.NO_PROCESS, S.WAITING, (A.LOCATE,)),
    (S.WAITING, E.HINT, G.ALWAYS, S.WAITING, ()),
    (S.WAITING, E.GONE, G.ALWAYS, S.WAITING, ()),  # it was found absent before its pidfd was served
    (S.WAITING, E.READY, G.ALWAYS, S.WAITING, ()),
    (S.WAITING, E.DRAINED, G.ALWAYS, S.WAITING, ()),
    (S.WAITING, E.LEFT, G.ALWAYS, S.WAITING, ()),  # it may still hold its namespace
    (S.WAITING, E.DIED, G.HOPELESS, S.FATAL, (A.LOG_EXIT, A.REPORT)),
    (S.WAITING, E.DIED, G.ALWAYS, S.WAITING, (A.LOG_EXIT, A.LOCATE)),  # the container may be back already
    (S.WAITING, E.DUE, G.NO_PROCESS, S.WAITING, (A.LOCATE,)),
    (S.WAITING, E.DUE, G.ALWAYS, S.WAITING, ()),
    # FATAL: it may still have the process that was killed because it was refused.
    (S.FATAL, E.START, G.NO_PROCESS, S.STARTING, (A.FORGET, A.LOCATE)),
    (S.FATAL, E.START, G.ALWAYS, S.STARTING, (A.FORGET,)),
    (S.FATAL, E.STOP, G.NO_PROCESS, S.STOPPED, (A.FINISH, A.RESUME)),
    (S.FATAL, E.STOP, G.ALWAYS, S.STOPPING, ()),
    (S.FATAL, E.REFUSED, G.ALWAYS, S.FATAL, ()),
    (S.FATAL, E.HINT, G.ALWAYS, S.FATAL, ()),
    (S.FATAL, E.GONE, G.ALWAYS, S.FATAL, ()),
    (S.FATAL, E.READY, G.ALWAYS, S.FATAL, ()),
    (S.FATAL, E.DRAINED, G.ALWAYS, S.FATAL, ()),
    (S.FATAL, E.LEFT, G.ALWAYS, S.FATAL, ()),  # it may still hold its namespace
    (S.FATAL, E.DIED, G.ALWAYS, S.FATAL, (A.LOG_DEATH,)),
)


def _by_pair() -> dict[tuple[State, Event], tuple[Row, ...]]:
    table: dict[tuple[State, Event], tuple[Row, ...]] = {}
    for row in ROWS:
        table[row[:2]] = (*table.get(row[:2], ()), row)
    return table


TABLE = _by_pair()


class UnexpectedEventError(Exception):
    """The table has no row for the pair."""


def step(state: State, event: Event, facts: Facts) -> tuple[State, tuple[Action, ...]]:
    """Return the next state and the actions. Raises UnexpectedEventError."""
    for _, _, guard, following, actions in TABLE.get((state, event), ()):
        if GUARDS[guard](facts):
            return following, actions
    raise UnexpectedEventError(f"{event} in state {state}")


def detail(before: State, event: Event, after: State, shown: str, reason: str) -> str:
    """Return what `status` shows beside the state `after`: why the agent does not run. `shown` was there before."""
    if after in (State.STOPPED, State.RUNNING):
        return ""
    if after is State.STOPPING or (before, after) == (State.BACKOFF, State.STARTING):
        return shown
    if after is not before or (after is State.WAITING and event in (Event.ABSENT, Event.GONE)):
        return reason
    return shown
