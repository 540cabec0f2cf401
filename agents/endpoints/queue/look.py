"""Looking at a SysV queue's messages without taking them (MSG_COPY of msgrcv(2)).

The kernel goes to the n-th message by passing the n-1 before it, so a look past all of them costs their number squared:
14 s at 16,384 empty messages, as many as a queue of the default size takes. Any sender could put those there, with a
type that no reader takes. So a look ends after FARTHEST messages (0.05 s).

A message that is longer than the buffer shows nothing, not even its type (E2BIG, and EINVAL with MSG_NOERROR). So the
look skips it and records that. If it is the next message, msgrcv fails with E2BIG too.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence

from nsbridge.agents import linux
from nsbridge.agents.endpoints.base import Blocked

FARTHEST = 1024  # messages that are looked at
_FLAGS = linux.MSG_COPY | linux.IPC_NOWAIT
_FIRST_EXPECTED = 8192  # bytes: the kernel's default for msgmax
CROWDED_DELAY = 1.0  # seconds until the next look at a queue that is full of others' messages: 5 % of a processor


class CrowdedError(Blocked):
    """There may be a message, behind more of other types than are looked at."""


class TooLongError(Blocked):
    """The next message is longer than `max_message`: it stays in the queue, and those behind it do too."""


def too_long(longest: int) -> str:
    """Describe a next message that is longer than `longest` bytes, and the remedy."""
    return (
        f"the next message is longer than max_message = {longest} and stays in the queue: raise max_message "
        "(64MiB at most), or remove the message"
    )


class QueuePeek:
    """Looks for messages that msgrcv would choose by `mtype`: 0 any, n that type, -n the lowest up to n."""

    def __init__(self, mtype: int, longest: int = 1 << 20) -> None:
        self._type = mtype
        self._longest = longest
        # It costs only as many pages as messages are long. Private: the filter allows no shared memory.
        self._peek = memoryview(mmap.mmap(-1, 8 + longest, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._peek_at = linux.address_of(self._peek)
        self._peeked = self._peek[:8].cast("q")  # the type of the message that was looked at
        # Bytes: the kernel prepares a copy of the size that is asked for, needed or not.
        self._expected = min(_FIRST_EXPECTED, longest)
        self._passed_over = False

    def too_long(self) -> TooLongError | None:
        """Return the error for a message that msgrcv reports and the last look skipped; None if it skipped none."""
        if not self._passed_over:
            return None
        return TooLongError(too_long(self._longest))

    def next(self, queue: int, most: int, size: int) -> Sequence[tuple[int, int]]:
        """Return (type to ask for, length) of each message that msgrcv would choose now, one after the other.

        Return at most `most`, and no more once they have `size` bytes together. For lowest types, return only one,
        and compare only FARTHEST messages. If msgrcv is then asked for each by its type, it gives each in its turn.

        Raises OSError, CrowdedError.
        """
        self._passed_over = False
        if self._type < 0:
            return self._lowest(queue)
        wanted, found = self._type, list[tuple[int, int]]()
        for index in range(FARTHEST):
            length = self._copy(queue, index)
            if length == -errno.ENOMSG:
                return found
            if length == -errno.E2BIG:
                self._passed_over = True
                if not wanted:  # it is the next one, or the one after these
                    return found
            elif not wanted or self._peeked[0] == wanted:
                found.append((wanted, length))
                size -= length
                if len(found) >= most or size <= 0:
                    return found
        return self._found(found)

    def _lowest(self, queue: int) -> Sequence[tuple[int, int]]:
        best: list[tuple[int, int]] = []
        for index in range(FARTHEST):
            length = self._copy(queue, index)
            if length == -errno.ENOMSG:
                return best
            if length == -errno.E2BIG:
                self._passed_over = True
                continue
            mtype = self._peeked[0]
            if mtype <= -self._type and (not best or mtype < best[0][0]):
                best = [(mtype, length)]
                if mtype == 1:
                    return best
        return self._found(best)

    def _found(self, found: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        if not found:
            raise CrowdedError(f"{FARTHEST} messages of other types are in front")
        return found

    def _copy(self, queue: int, index: int) -> int:
        """Look at one message: return its length, -ENOMSG, or -E2BIG. Raises OSError.

        Messages are mostly as long as those before. A longer one is tried with buffers that grow, so that a look costs
        as much as the messages are long.
        """
        size = self._expected
        length = linux.try_msgrcv(queue, self._peek_at, size, index, _FLAGS)
        if length == size:
            return length
        while length == -errno.E2BIG and size < self._longest:
            size = min(4 * size + _FIRST_EXPECTED, self._longest)
            length = linux.try_msgrcv(queue, self._peek_at, size, index, _FLAGS)
        if length >= 0:
            self._expected = max(length, self._expected * 7 // 8)
        elif length not in (-errno.ENOMSG, -errno.E2BIG):
            raise OSError(-length, os.strerror(-length))
        return length
