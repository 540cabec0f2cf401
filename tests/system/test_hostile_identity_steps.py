"""A directory becomes a link at every step of an agent's entry: what was checked is what is used, and nothing else is.

A tracer stops the agent before each system call that takes a path, from its arrival in the container until it serves
(stepping.py). There the test exchanges the user's directory and the user's link, for good or until the next such call.
An exchange between two calls that take no path is the same as one before the next call that does.

The kind of fault: a path that is looked at, and found once more. It shows in the user that the agent becomes (the
arguments of setresuid), in inotify events on the victim's files, in their content, and in what is delivered.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from tests.system.conftest import Factory
from tests.system.identity_scene import EVIL, SECRET, USER, Scene, Victim, link, make, populate, scene_of, write
from tests.system.nsbridged import kill_and_wait
from tests.system.room import wait_until
from tests.system.stepping import Call, Stepper, next_fork
from tests.system.test_hostile_files import exchange

ENDPOINTS = {
    "spool": 'spool = { out = "/home/app/spool/out", in = "/home/app/spool/in", done = "/home/app/spool/done" }',
    "log": 'log = { out = "/home/app/spool/out.log", in = "/home/app/spool/in.log" }',
    "file": 'file = { out = "/home/app/spool/one", in = "/home/app/spool/two" }',
}
CHROOT, SETRESUID, EPOLL_WAIT, PRCTL = 161, 117, {232, 281}, 157  # numbers of x86-64's calls, here and below
WITH_PATHS = {
    2,
    4,
    6,
    21,
    80,
    *range(82, 91),
    92,
    94,
    133,
    137,
    254,
    *range(257, 270),
    280,
    303,
    316,
    332,
    428,
    437,
    439,
    452,
}
NEWFSTATAT = 262
TOUCHED = flags.OPEN | flags.ACCESS | flags.MODIFY | flags.ATTRIB | flags.CREATE | flags.DELETE | flags.MOVED_FROM
TOUCHED |= flags.MOVED_TO
ENOUGH = 20  # lines of what went wrong


def is_fstat(pid: int, call: Call) -> bool:
    """True if the call takes an empty path, so that it asks for its descriptor alone: two thirds of all are these."""
    if call.number != NEWFSTATAT:
        return False
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(call.second)
        return memory.read(1) == b"\0"


class Attack:
    """A scene with two names that can be exchanged, and all evidence of an agent's actions."""

    def __init__(self, scene: Scene, kind: str, victim: Victim, inotify: INotify) -> None:
        self.scene = scene
        self.kind = kind
        self.victim = victim
        self.became: list[int] = []  # uids that the agent has asked for
        self._inotify = inotify
        self._noticed: set[str] = set()
        self._app = os.open(scene.evil.rootfs / "home/app", os.O_PATH)
        self._steps = 0
        self.is_link = False

    def exchange(self) -> None:
        """Put the link in the place of the directory, or the other way round."""
        exchange(self._app, b"spool", b"other")
        self.is_link = not self.is_link

    def own(self) -> Path:
        """Return the user's own directory, under its present name."""
        return self.scene.evil.rootfs / "home/app" / ("other" if self.is_link else "spool")

    def touched(self) -> list[str]:
        """Return changes of the victim since the last call, and actions of an agent that is root."""
        self._notice()
        harm = [
            *self._noticed,
            *self.scene.harm(),
            *(f"{name} of the victim was changed" for name in self.victim.changes()),
        ]
        harm += [f"an agent became uid {uid}" for uid in self.became if uid != USER]
        self._inotify.read(timeout=0)  # our own looks at the victim
        self._noticed.clear()
        self.became.clear()
        return harm

    def _notice(self) -> bool:
        """True if the victim was touched."""
        self._noticed |= {f"{event.name or '.'} of the victim was touched" for event in self._inotify.read(timeout=0)}
        return bool(self._noticed)

    def enter(self, number: int, *, link_first: bool = False, back: bool = False) -> bool:
        """Let an agent enter; exchange before its `number`-th path, `back` at the next; False if it has fewer."""
        self._steps += 1
        self._write(b"own message %d." % self._steps)
        self.scene.send(b"message %d of the peer." % self._steps)
        if link_first:
            self.exchange()
        with next_fork(self.scene.daemon.pid, lambda: self.scene.daemon.call("start", names=[EVIL])) as stepper:
            reached = self._step(stepper, number, back=back)
        wait_until(lambda: self.refused() or self._has_worked() or self._notice() or self.scene.harm(), "it works", 20)
        return reached

    def refused(self) -> bool:
        """True if the agent says that it does not serve, or is to try again."""
        return bool(self.scene.refusal()) or self.scene.agent()["state"] == "BACKOFF"

    def end(self) -> None:
        """Stop the agent, without a pause for what is blocked, and put the directory back."""
        before = self.scene.agent()["pid"]
        self.scene.daemon.call("stop", names=[EVIL])
        if before is not None:
            with suppress(ProcessLookupError):
                kill_and_wait(before)
        self.scene.daemon.wait_for("STOPPED", EVIL)
        if self.is_link:
            self.exchange()

    def heal(self) -> None:
        """Make the victim's changes what the next step is compared with."""
        self.victim.before = self.victim.seen()
        self._inotify.read(timeout=0)

    def _step(self, stepper: Stepper, number: int, *, back: bool) -> bool:
        inside, paths = False, 0
        for call in stepper.calls():
            inside = inside or call.number == CHROOT
            if call.number == SETRESUID:
                self.became.append(call.first)
            if call.number in EPOLL_WAIT:
                break
            if not inside or call.number not in WITH_PATHS or is_fstat(stepper.child, call):
                continue
            paths += 1
            if paths == number:
                self.exchange()
            elif paths > number:
                if back:
                    self.exchange()
                if self.became:
                    return True  # else continue until it has chosen
                back = False
        return paths >= number

    def _write(self, body: bytes) -> None:
        match self.kind:
            case "spool":
                write(self.own() / f"out/{self._steps:04d}", body)
            case "log":
                with (self.own() / "out.log").open("ab") as file:
                    file.write(body + b"\n")
            case "file":
                (self.own() / "one").write_bytes(body)

    def _has_worked(self) -> bool:
        if b"own message %d." % self._steps not in self.scene.received():
            return False
        came = self.own() / {"spool": "in", "log": "in.log", "file": "two"}[self.kind]
        data = b"".join(path.read_bytes() for path in (came.iterdir() if came.is_dir() else [came]))
        return b"message %d of the peer." % self._steps in data


@contextmanager
def attack(tmp_path: Path, make_one: Factory, kind: str) -> Iterator[Attack]:
    """Make a route with a user's directory `spool`, beside it the user's link `other` to the victim."""
    evil, peer = make_one(), make_one()
    app = make(evil.rootfs / "home/app")
    populate(make(app / "spool"))
    link(app / "other", "/root/x")
    victim = Victim(evil.rootfs / "root/x")
    with scene_of(tmp_path, evil, peer, ENDPOINTS[kind]) as scene, INotify(nonblocking=True) as inotify:
        scene.daemon.wait_for("RUNNING")
        for path in (victim.directory, *(victim.directory / name for name in ("out", "in", "done"))):
            inotify.add_watch(path, TOUCHED)
        made = Attack(scene, kind, victim, inotify)
        made.end()
        yield made


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("link_first", "back"),
    [(False, False), (False, True), (True, True)],
    ids=["link-for-good", "link-for-one-call", "directory-for-one-call"],
)
@pytest.mark.parametrize("kind", ENDPOINTS)
def test_exchange_at_every_step_of_the_entry(
    tmp_path: Path, runc_container: Factory, kind: str, link_first: bool, back: bool
) -> None:
    """Nothing of the victim is opened, and the agent is uid 1000 or none.

    Today an exchange before its first look makes the agent uid 0, which then delivers and deletes the victim's file.
    """
    with attack(tmp_path, runc_container, kind) as attacked:
        number, wrong = 1, []
        while attacked.enter(number, link_first=link_first, back=back):
            wrong += [f"path {number}: {what}" for what in attacked.touched()]
            if len(wrong) > ENOUGH:
                break
            attacked.end()
            attacked.heal()
            number += 1
        print(f"{number - 1} steps")
        assert not wrong, f"{wrong}; log:\n{attacked.scene.daemon.said()[-3000:]}"
        assert number > 4, "the agent has looked at some paths"
        assert SECRET not in attacked.scene.received()


def test_tracer_sees_what_happens_without_the_attack(tmp_path: Path, runc_container: Factory) -> None:
    """The same tools see an agent of uid 0, and a file that is opened; so silence above means something. Today too."""
    with attack(tmp_path, runc_container, "spool") as attacked:
        attacked.enter(1 << 30)
        assert attacked.became == [USER]
        assert not attacked.touched()
        attacked.end()
        os.chown(attacked.own(), 0, 0)
        (attacked.victim.directory / "out/mail").read_bytes()
        assert "mail of the victim was touched" in attacked.touched()
