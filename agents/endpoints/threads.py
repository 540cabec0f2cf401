"""A thread of an endpoint: for a wait that no descriptor can replace, and nothing else (loop.py says how it serves)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable


def start_thread(name: str, run: Callable[[], None]) -> None:
    """Start a thread that takes no signals and ends only with the process; it is to be vouched for (base.Host)."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
