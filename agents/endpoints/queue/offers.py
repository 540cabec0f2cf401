"""Offers messages to the two sender processes of an exactly-once queue, and looks after these processes.

senders.py is what runs in them. exact_sink.py decides what is offered; evidence.py has the recovery after a kill.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import AFTERWARDS, AgentApi
from nsbridge.agents.endpoints.queue import senders
from nsbridge.agents.endpoints.queue.evidence import QueueEvidence
from nsbridge.agents.endpoints.queue.senders import Outbox
from nsbridge.agents.fork import fork
from nsbridge.agents.heartbeat import Debt
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.loop import READABLE
from nsbridge.agents.wire import Run

_LOOK_AFTER = 0.1  # seconds between looks at the senders while something is offered
_WAKE_AFTER = 128  # messages handed over, after which a sender wakes the agent, so that it can confirm them


class Offers:
    """The messages that are offered and not yet handed over (`runs`).

    It calls `noted` when the senders have made progress, or may have failed.
    """

    def __init__(
        self,
        host: AgentApi,
        longest: int,
        journal: SinkJournal,
        evidence: QueueEvidence,
        debt: Debt,
        noted: Callable[[], None],
    ) -> None:
        self._host = host
        self._journal = journal
        self._evidence = evidence
        self._debt = debt
        self._noted = noted
        self._looks_after = False
        self.outbox = Outbox(longest)
        self.runs: deque[Run] = deque()
        self.pids: tuple[int, ...] = ()

    def start(self) -> None:
        """Fork the senders a little later: the first message need not wait for them."""
        self._host.loop.watch(self.outbox.to_agent, READABLE, self._woken)
        self._host.loop.call_later(AFTERWARDS, self._fork_senders)

    def wake(self) -> None:
        """Wake both senders."""
        for sender in (0, 1):
            self.outbox.wake(sender)

    def offer(self, run: Run, mtype: int) -> int:
        """Offer the first messages as `mtype`, as many as there is room for; return how many."""
        journal, outbox = self._journal, self.outbox
        if not self.runs:
            outbox.begin(journal.handed, journal.handed_cell, 1 - journal.last_sender)
        count = outbox.place(run, mtype, journal.handed)  # a single message of max_message always fits
        if not count:
            return 0
        run = run.before(count)
        self._evidence.intend(run, mtype)
        if not self.runs:
            self._debt.clear()
        self.runs.append(run)
        outbox.publish(run.last)
        self.watch_senders()
        return count

    def watch_senders(self) -> None:
        """Ask the senders to wake the agent when they hand over some messages, and check on them meanwhile."""
        handed, outbox = self._journal.handed, self.outbox
        upto = min(self.runs[-1].last, handed + _WAKE_AFTER)
        outbox.wake_agent_at(upto)
        if self._journal.handed >= upto:
            os.eventfd_write(outbox.to_agent, 1)  # it was handed over before that could be asked for
        self.wake()
        if not self._looks_after:
            self._looks_after = True
            self._host.loop.call_later(_LOOK_AFTER, self._look_after)

    def _look_after(self) -> None:
        """Check from time to time, while something is offered, for a full queue and for a missed wake-up."""
        self._looks_after = False
        if self.runs:
            self._noted()

    def collect(self) -> None:
        """Report what the senders have handed over."""
        handed = self._journal.handed
        while self.runs and self.runs[0].first <= handed:
            run = self.runs.popleft()
            count = handed - run.first + 1
            if count < len(run.bodies):
                self.runs.appendleft(run.after(count))
                run = run.before(count)
            self._debt.clear()
            self._host.handed(run)

    def skip(self) -> None:
        """Take back the first message, which its sender could not send. The same sender gets the next one."""
        run = self.runs.popleft()
        if len(run.bodies) > 1:
            self.runs.appendleft(run.after(1))
        self.outbox.give_turn(run.first + 1, 1 - self._journal.last_sender)

    def _woken(self, _events: int) -> None:
        """Handle a wake-up from the senders: they have handed over, or one of them cannot."""
        os.eventfd_read(self.outbox.to_agent)
        self._noted()

    def _fork_senders(self) -> None:
        me, processor = os.getpid(), senders.choose_processor()
        keep = {0, 1, 2, self._journal.fd, self.outbox.to_agent, *self.outbox.to_sender}
        pids = []
        for which in (0, 1):
            child = fork(lambda which=which: self._be_sender(which, me, processor, keep))  # type: ignore[misc]
            pids.append(child.pid)
            self._host.loop.watch(child.pidfd, READABLE, lambda _events: self._sender_died())
        self.pids = tuple(pids)
        self._host.senders(self.pids)

    def _be_sender(self, which: int, agent_pid: int, processor: int, keep: set[int]) -> int:
        linux.set_name(f"{self._host.name}/{which}")
        senders.begin(agent_pid, processor, keep)
        self._host.confine_sender()
        senders.run(which, self.outbox, self._journal)
        return 0

    def _sender_died(self) -> None:
        """Die, so that a fresh agent starts: only a fresh agent reads the evidence.

        Dying by the same signal as the sender shows that the death was caused from outside.
        """
        os.kill(os.getpid(), signal.SIGKILL)
