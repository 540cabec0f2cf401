"""One queue, two types: a program answers through the queue that nsbridge sends into, so who sent last is no evidence.

strace holds a sender just before or just after its msgsnd (tampering.py) while the program sends; then it is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from nsbridge.agents.journal.journalfile import CELLS
from nsbridge.agents.journal.sinkjournal import INTENT
from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import run, wait_until
from tests.system.tampering import Moment, Tampering
from tests.system.traffic import Sent, send_all, visible

pytestmark = pytest.mark.senders

# Answers each message of type 1 with one of type 2, and prints it.
PROGRAM = """
import sysv_ipc
queue = sysv_ipc.MessageQueue(0x51, sysv_ipc.IPC_CREAT, 0o666, 1 << 16)
while True:
    body, _ = queue.receive(True, 1)
    queue.send(b"answer to " + body, True, 2)
    print(body.decode(), flush=True)
"""
QUEUE = "queue = { in = { key = 0x51, type = 1 }, out = { key = 0x51, type = 2 }, create = true }"


class Setting:
    """A spool on one side, that program on the other."""

    def __init__(self, directory: Path, make: Factory, in_doubt: str) -> None:
        web, self.legacy = make(), make()
        self.out, self.in_ = (web.rootfs / "srv" / name for name in ("out", "in"))
        self._directory = directory
        self.printed = directory / "printed"
        self.daemon = Nsbridged(
            directory,
            f'[route.r]\nin_doubt = "{in_doubt}"\n[route.r.agent.files]\ncontainer = "{web.spec}"\n'
            'spool = { out = "/srv/out", in = "/srv/in" }\n'
            f'[route.r.agent.queue]\ncontainer = "{self.legacy.spec}"\n{QUEUE}\n',
        )
        self._sent = 0

    @contextmanager
    def program(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run the program."""
        command = ["nsenter", f"--target={self.legacy.pid}", "--ipc", "--", sys.executable, "-c", PROGRAM]
        with self.printed.open("wb") as out, subprocess.Popen(command, stdout=out) as program:
            try:
                yield program
            finally:
                program.kill()

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run the daemon and the program."""
        with self.program() as program, self.daemon:
            self.daemon.wait_for("RUNNING")
            yield program

    def send(self, body: bytes) -> None:
        """Send from the spool."""
        self._sent += 1
        (self.out / ".next").write_bytes(body)
        (self.out / ".next").rename(self.out / f"{self._sent:08d}")

    def received(self) -> list[str]:
        """Return the messages that the program has received so far."""
        return self.printed.read_text(encoding="ascii").split()

    def answers(self) -> list[str]:
        """Return the answers that came back so far, in order."""
        return [(self.in_ / name).read_text(encoding="ascii") for name in sorted(visible(self.in_))]

    def sender(self, which: int) -> int:
        """Return the pid of one of the two."""
        agent = psutil.Process(self.daemon.agents()["r:queue"]["pid"])
        pids: list[int] = sorted(child.pid for child in agent.children())
        return pids[which]

    def hold_next_sender(self, moment: Moment, which: int = 1) -> Tampering:
        """Hold the sender that is to send the second message of this life, or the first."""
        return Tampering(self.sender(which), "msgsnd", 1, moment, self._directory)

    def wait_answered(self, *bodies: str) -> None:
        """Wait until the program has received these, in order, and its answers came back; nothing is pending."""
        wait_until(lambda: len(self.received()) >= len(bodies), f"the program gets {bodies}, not {self.received()}")
        wait_until(lambda: len(self.answers()) >= len(bodies), f"the answers come back, not {self.answers()}")
        wait_until(lambda: self.flow()["pending"] == 0, "nothing is pending")
        assert self.received() == list(bodies)
        assert [answer.removeprefix("answer to ") for answer in self.answers()] == list(bodies)

    def flow(self) -> dict[str, Any]:
        """Return the flow into the queue."""
        return self.daemon.flow("r:files")

    def doubts(self) -> list[str]:
        """Return the lines of the log about them."""
        return [line for line in self.daemon.said().splitlines() if "unknown whether" in line]

    def shown(self) -> bytes:
        """Return the output of `nsbridgectl status`."""
        command = [sys.executable, "-m", "nsbridge.supervisor.cli.nsbridgectl", "-s", str(self.daemon.socket), "status"]
        return run(command, check=False).stdout


@pytest.mark.parametrize(
    ("in_doubt", "arrive"), [("resend", ["one", "two", "two", "three"]), ("skip", ["one", "two", "three"])]
)
def test_a_message_sent_and_answered_before_the_kill_is_in_doubt(
    tmp_path: Path, unshare_container: Factory, in_doubt: str, arrive: list[str]
) -> None:
    """The answer hides it: `resend` repeats the one message, `skip` is right; either is counted, logged and shown."""
    setting = Setting(tmp_path, unshare_container, in_doubt)
    with setting.running():
        setting.send(b"one")
        setting.wait_answered("one")
        assert setting.flow()["in_doubt"] == 0
        held = setting.hold_next_sender(Moment.AFTER)
        setting.send(b"two")
        wait_until(lambda: setting.received() == ["one", "two"], "it was sent, and is answered")
        held.wait_killed()
        setting.send(b"three")
        setting.wait_answered(*arrive)
        assert setting.flow()["in_doubt"] == 1
        (said,) = setting.doubts()
        assert said.endswith({"resend": "sent again", "skip": "skipped"}[in_doubt])
        assert b"1 in doubt" in setting.shown()


@pytest.mark.parametrize(("in_doubt", "arrive"), [("resend", ["one", "two", "three"]), ("skip", ["one", "three"])])
def test_a_message_not_sent_before_the_kill_is_in_doubt_too(
    tmp_path: Path, unshare_container: Factory, in_doubt: str, arrive: list[str]
) -> None:
    """The answer to the one before looks the same: `resend` is right, `skip` loses the one message."""
    setting = Setting(tmp_path, unshare_container, in_doubt)
    with setting.running():
        setting.send(b"one")
        setting.wait_answered("one")
        held = setting.hold_next_sender(Moment.BEFORE)
        setting.send(b"two")
        held.wait_killed()
        setting.send(b"three")
        setting.wait_answered(*arrive)
        assert (setting.flow()["in_doubt"], len(setting.doubts())) == (1, 1)


def test_an_answerer_from_before_the_daemon_is_no_evidence(tmp_path: Path, unshare_container: Factory) -> None:
    """Its answer to the doubtful message looks like what it had sent before: a repeat is counted."""
    setting = Setting(tmp_path, unshare_container, "resend")
    with setting.program():
        send_all(setting.legacy, 0x51, [Sent(1, b"zero")])  # from another program; it is answered
        wait_until(lambda: setting.received() == ["zero"], "it is received")
        with setting.daemon:
            setting.daemon.wait_for("RUNNING")
            wait_until(lambda: len(setting.answers()) == 1, "the old answer is taken")
            held = setting.hold_next_sender(Moment.AFTER, 0)
            setting.send(b"one")
            wait_until(lambda: setting.received() == ["zero", "one"], "it was sent, and is answered")
            held.wait_killed()
            wait_until(lambda: setting.received() == ["zero", "one", "one"], "it is sent again")
            wait_until(lambda: setting.flow()["in_doubt"] == 1, "and counted")


@pytest.mark.parametrize("in_doubt", ["resend", "skip"])
def test_a_message_that_is_still_in_the_queue_is_not_in_doubt(
    tmp_path: Path, unshare_container: Factory, in_doubt: str
) -> None:
    """It is looked for there, behind what the program has sent meanwhile."""
    setting = Setting(tmp_path, unshare_container, in_doubt)
    with setting.running() as program:
        setting.send(b"one")
        setting.wait_answered("one")
        program.send_signal(signal.SIGSTOP)
        held = setting.hold_next_sender(Moment.AFTER)
        setting.send(b"two")
        held.wait_held()
        send_all(setting.legacy, 0x51, [Sent(2, b"from another program")])
        wait_until(lambda: len(setting.answers()) == 2, "what was sent since is taken")
        held.wait_killed()
        wait_until(lambda: "is in the queue: it was sent" in setting.daemon.said(), "it is found")
        setting.send(b"three")
        program.send_signal(signal.SIGCONT)
        wait_until(lambda: len(setting.answers()) == 4, "all comes back")
        assert setting.received() == ["one", "two", "three"]
        assert (setting.flow()["in_doubt"], setting.doubts()) == (0, [])


def test_an_equal_message_in_the_queue_is_no_proof(tmp_path: Path, unshare_container: Factory) -> None:
    """The one before was the same, and is still there: with `resend` nothing may be lost."""
    setting = Setting(tmp_path, unshare_container, "resend")
    with setting.running() as program:
        setting.send(b"zero")
        setting.wait_answered("zero")
        program.send_signal(signal.SIGSTOP)
        setting.send(b"ping")
        wait_until(lambda: setting.flow()["delivered"] == 2, "the first is in the queue")
        held = Tampering(setting.sender(0), "msgsnd", 1, Moment.BEFORE, tmp_path)
        send_all(setting.legacy, 0x51, [Sent(2, b"from another program")])
        wait_until(lambda: len(setting.answers()) == 2, "what was sent since is taken")
        setting.send(b"ping")
        held.wait_killed()
        wait_until(lambda: "it was sent" in setting.daemon.said() or setting.doubts(), "it is decided")
        program.send_signal(signal.SIGCONT)
        setting.send(b"end")
        wait_until(lambda: "end" in setting.received(), "all comes back")
        assert setting.received() == ["zero", "ping", "ping", "end"]


def test_a_sender_that_never_came_to_send_leaves_no_doubt(tmp_path: Path, unshare_container: Factory) -> None:
    """It had not noted itself: the message was not sent, no matter who has sent since, and `skip` loses nothing."""
    setting = Setting(tmp_path, unshare_container, "skip")
    with setting.running():
        setting.send(b"one")
        setting.wait_answered("one")
        os.kill(setting.sender(1), signal.SIGSTOP)
        setting.send(b"two")
        journal = tmp_path / "state/journal/r/queue.in"
        wait_until(lambda: _cells(journal)[INTENT] == 2, "it is offered to the second sender")
        kill_and_wait(setting.daemon.agents()["r:queue"]["pid"])
        setting.send(b"three")
        setting.wait_answered("one", "two", "three")
        assert (setting.flow()["in_doubt"], setting.doubts()) == (0, [])


def _cells(journal: Path) -> memoryview[int]:
    return memoryview(journal.read_bytes())[CELLS].cast("Q")
