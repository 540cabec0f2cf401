"""Closes descriptors at the end of a block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Yield an open descriptor, which is closed at the end of the block, however that ends."""
    try:
        yield fd
    finally:
        os.close(fd)
