"""When a dead agent is started again: at once, then later and later. No clock or random in here.

* A death by signal after it was ready was done to the agent, not by it: it is back at once. A budget bounds that, so
  that a host which kills every agent (out of memory) is not kept busy forking new ones.
* Otherwise the first restart is at once; then the delay doubles from FIRST to LAST, with jitter so that agents that
  died together do not come back together.
* Stable running wipes the slate.
"""

from __future__ import annotations

FIRST = 0.1  # seconds
LAST = 30.0
STABLE = 10.0  # seconds of serving after which earlier deaths do not count
JITTER = 0.25  # the delay is up to this share shorter
BUDGET = 60.0  # deaths by signal that are answered at once
REFILL = 5.0  # of them a second


class RestartPolicy:
    """The memory of one agent's deaths."""

    def __init__(self) -> None:
        self._deaths = 0
        self._budget = BUDGET
        self._at = 0.0  # when the budget was last looked at

    def died(self, now: float, served: float | None, by_signal: bool, chance: float) -> float:
        """Return the seconds until the next start.

        `served` is the seconds since the agent was ready, None if it never was. `chance` is a number from 0 to 1.
        """
        self._budget = min(BUDGET, self._budget + (now - self._at) * REFILL)
        self._at = now
        if served is not None and served >= STABLE:
            self._deaths = 0
        if by_signal and served is not None and self._budget >= 1:
            self._budget -= 1
            return 0.0
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        delay: float = min(FIRST * 2 ** min(self._deaths - 2, 20), LAST)
        return delay * (1 - JITTER * chance)

    def forget(self) -> None:
        """Count the deaths anew, because a person started the agent."""
        self._deaths = 0
