"""An event loop that refuses descriptors, as the kernel does at the limit fs.epoll.max_user_watches."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from nsbridge.agents.loop import Loop


class FullEpoll(Loop):
    """A loop that accepts `room` descriptors, and then none."""

    def __init__(self, room: int) -> None:
        self.room = 1 + room  # its own eventfd comes first
        super().__init__()

    def watch(self, fd: int, mask: int, callback: Callable[[int], None]) -> None:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        super().watch(fd, mask, callback)
