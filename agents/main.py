"""The main function of an agent, a forked child: leave the supervisor, enter the container, serve until the end."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from dataclasses import replace
from functools import partial

from nsbridge.agents import control, lastwords, limits, runtime
from nsbridge.agents.confinement import entry
from nsbridge.agents.confinement.entry import Assignment
from nsbridge.agents.counter import open_slot
from nsbridge.agents.endpoints import kinds
from nsbridge.agents.fork import EXIT_AGAIN, EXIT_NEVER, release_first
from nsbridge.agents.identity.identity import IdMap
from nsbridge.agents.identity.surroundings import memory
from nsbridge.agents.journal.journalfile import LeftAloneError
from nsbridge.agents.journal.state import bound_files, open_state
from nsbridge.agents.loop import Loop
from nsbridge.agents.outgoing import NeverTakenError
from nsbridge.agents.wire import WireError
from nsbridge.config.trusted import UntrustedError


def main(assignment: Assignment) -> int:
    """Be the agent, and return its exit code. Raises nothing: the supervisor gets the reason as the last words."""
    assignment = replace(assignment, control_fd=release_first(assignment.control_fd))
    channel = control.held(socket.socket(fileno=assignment.control_fd))
    try:
        sys.setswitchinterval(0.0005)  # s; a thread that wakes with a message waits at most that for the other
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # a broken lease; its default would kill
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):  # a terminal's are for the supervisor
            signal.signal(signum, signal.SIG_IGN)
        own_fds = entry.leave_the_supervisor(assignment)
        window = assignment.route.window
        counter = open_slot(assignment.counter) if assignment.counter else None
        report = partial(lastwords.report, channel)
        state = open_state(assignment.state_dir, assignment.agent, window, report, counter)
        bound_files(assignment.agent)
        assignment.scoreboard.begin()  # it may have waited for the earlier agent to exit
        served = kinds.serve(assignment)
        ids = IdMap.of_container(assignment.container_pid, assignment.ns_path)
        around = served.surroundings(ids, memory(assignment, state.identity))
        loop = Loop()  # its one epoll instance: an agent cannot make another
        entered = entry.enter(assignment, own_fds, state.given, around)
        threading.excepthook = lambda args: lastwords.crash(channel, args.exc_value)
        sys.unraisablehook = lambda about: lastwords.ignored(channel, about.exc_value)
        runtime.Agent(loop, assignment, channel, entered, served, state).run()
        return 0
    except (entry.RefusedForGood, LeftAloneError, NeverTakenError, UntrustedError) as error:
        control.send(channel, report="error", text=str(error)[:1000])
        return EXIT_NEVER
    except entry.Gone as error:
        control.send(channel, report="error", text=str(error))
        return EXIT_AGAIN
    except (WireError, OSError) as error:
        control.send(channel, report="error", text=f"{type(error).__name__}: {limits.explained(error)}"[:1000])
        return EXIT_AGAIN
    except BaseException as error:  # noqa: BLE001  (an agent has no caller)
        lastwords.crash(channel, error)
