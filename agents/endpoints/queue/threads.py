"""A thread of an endpoint: for a wait that no descriptor can replace, and nothing else (loop.py says how it serves)."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable


def start_thread(name: str, run: Callable[[], None]) -> None:
    """Start a thread that takes no signals and ends only with the process. The caller must vouch for it (base.Host).

    Raises OSError: EAGAIN at the limit of processes and threads.
    """
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:  # "can't start new thread"; it says nothing else
        raise OSError(errno.EAGAIN, f"{os.strerror(errno.EAGAIN)}, for thread {name}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
