"""Gives the agents of queues their part of the kernel's counter, or says why there is none."""

from __future__ import annotations

from collections.abc import Callable

from nsbridge.agents.counter import Lease
from nsbridge.config.schema import AgentConfig, Evidence
from nsbridge.supervisor.host.counter import KernelCounter, Unavailable

COUNTER, SENDERS = "counter", "senders"  # as `status` names them


class EvidenceRefused(Exception):
    """The configuration asks for the counter, and it cannot be had; the text says why and what would help."""


class CounterLeases:
    """Opens the counter for the first agent that needs it: it costs every system call of the host some nanoseconds."""

    def __init__(self, mode: Evidence, state_dir: str, info: Callable[[str], None]) -> None:
        self._mode = mode
        self._state_dir = state_dir
        self._info = info
        self._counter: KernelCounter | None = None
        self.reason = "" if mode is not Evidence.SENDERS else 'evidence = "senders" in [daemon]'  # why there is none
        self._is_open = False

    def lease(self, agent: AgentConfig) -> Lease | None:
        """Return what a new agent needs of the counter; None if it works without. Raises EvidenceRefused."""
        if not agent.endpoint.is_counted or self._mode is Evidence.SENDERS:
            return None
        if not self._is_open:
            self._open()
        if self._counter is None:
            if self._mode is Evidence.COUNTER:
                raise EvidenceRefused(
                    f'evidence = "counter" in [daemon], and the kernel cannot count here: {self.reason}; '
                    'or set evidence = "auto"'
                )
            return None
        return self._counter.lease(agent.name)

    def register(self, lease: Lease) -> None:
        """Count what this process does: to be called in a new agent. Raises OSError."""
        if self._counter is not None:
            self._counter.register(lease)

    def forget(self, pid: int) -> None:
        """Count no more what has this pid: to be called before an agent is reaped."""
        if self._counter is not None:
            self._counter.forget(pid)

    def close(self, *, is_orderly: bool) -> None:
        """End. After an orderly stop nothing is in flight, and the kernel need not count any more."""
        if self._counter is not None:
            self._counter.remove() if is_orderly else self._counter.close()
            self._counter = None

    def _open(self) -> None:
        self._is_open = True
        try:
            self._counter = KernelCounter(self._state_dir)
        except Unavailable as reason:
            self.reason = str(reason)
            self._info(f"the kernel does not count messages of queues, senders are the evidence: {reason}")
        else:
            self._info("the kernel counts messages of queues: exactly once without conditions")
