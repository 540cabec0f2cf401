"""When a dead agent is started again: at once, then later and later. No clock or random in here.

* A death by signal after serving for a while was done to the agent, not by it: it is back at once, every time. The
  "while" alone bounds how often that can be.
* Otherwise the first restart is at once; then the delay doubles from FIRST to LAST, with jitter so that agents that
  died together do not come back together.
* Stable running wipes the slate.
"""

from __future__ import annotations

FIRST = 0.1  # seconds
LAST = 30.0
STABLE = 10.0  # seconds of serving after which earlier deaths do not count
SERVED = 0.1  # seconds of serving after which a death by signal is not its own doing
JITTER = 0.25  # the delay is up to this share shorter


class RestartPolicy:
    """The memory of one agent's deaths."""

    def __init__(self) -> None:
        self._deaths = 0

    def died(self, served: float, by_signal: bool, chance: float) -> float:
        """Seconds until the next start. `served`: seconds since it was ready; `chance`: 0 to 1, for the jitter."""
        if served >= STABLE:
            self._deaths = 0
        if by_signal and served >= SERVED:
            return 0.0
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        delay: float = min(FIRST * 2 ** min(self._deaths - 2, 20), LAST)
        return delay * (1 - JITTER * chance)

    def forget(self) -> None:
        """A person started it: count anew."""
        self._deaths = 0
