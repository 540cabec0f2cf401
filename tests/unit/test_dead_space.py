"""Status while a dead letter waits for space in `state_dir`: it names the message, its size, and the remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from nsbridge.agents.dead.keeper import DeadLetterKeeper
from nsbridge.agents.dead.letters import DeadLetters, NoSpaceError
from nsbridge.agents.loop import Loop
from nsbridge.agents.wire import Run
from nsbridge.config.schema import DeadConfig

LEFT = " (it has 0 B left; nsbridgectl dead list shows what is set aside)"
TOO_LONG = "20000 bytes are more than the queue takes: its msg_qbytes is 16384"
NAMED = "a message too long for queue 0x4d2 (20,000 B)"


class Host:
    """See LetterHost."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.name = "orders:web"
        self.state_dir = "/run/nsbridge"

    def log(self, level: str, text: str) -> None:
        """Do nothing."""

    def sink_ready(self) -> None:
        """Do nothing."""

    def show_blocked(self) -> None:
        """Do nothing."""

    def show_counters(self) -> None:
        """Do nothing."""


class Refusing(DeadLetters):
    """A directory into which nothing can be written."""

    def __init__(self, error: Exception) -> None:
        super().__init__(-1, None)
        self._error = error

    def add(self, one: Run, where: str, why: str) -> bool:
        """Fail."""
        raise self._error


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.loop.close()


@pytest.mark.parametrize(
    ("error", "why", "message", "more"),
    [
        (OSError(errno.ENOSPC, "full"), TOO_LONG, NAMED, ""),
        (OSError(errno.EDQUOT, "full"), "a newline", "a message for queue 0x4d2 (20,000 B, a newline)", ""),
        (NoSpaceError("state_dir has 0 B left"), TOO_LONG, NAMED, LEFT),
    ],
)
def test_full_disk_is_named_with_the_message_that_waits(
    host: Host, error: Exception, why: str, message: str, more: str
) -> None:
    """The kernel refuses the file, or too little would be left."""
    keeper = DeadLetterKeeper(host, -1, None, DeadConfig(), None)
    keeper._letters = Refusing(error)
    assert keeper.put(Run(1, 1, 1, (b"x" * 20_000,)), "queue 0x4d2", why) is None
    full = f"state_dir /run/nsbridge is full, so {message} cannot be set aside: free space there{more}"
    assert keeper.reason == full
