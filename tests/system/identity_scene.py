"""A container whose programs rearrange the paths of its endpoint, and files outside that must stay as they are.

A route `r` joins the agent `r:evil`, whose endpoint the test chooses, to the agent `r:peer` with two spools. The test
changes the evil container's directories, then calls `assert_harmless`. It waits until the agent is refused or did harm,
starts the agent once more, and waits again. Harm is: a victim's file was delivered, changed, made or deleted, or an
agent runs under a user that it must not have.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.system.engines import RuntimeContainer
from tests.system.hostile_scene import contents
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import wait_dead, wait_until
from tests.system.test_confinement import status_of

EVIL, PEER = "r:evil", "r:peer"
USER = 1000  # uid and gid of the container's program
SECRET = b"this line must not leave its directory\n"
MESSAGE = b"a message of the peer"

# Each side of each kind of file endpoint, below a directory DIR.
SIDES = {
    "spool out": 'spool = { out = "DIR/out" }',
    "spool in": 'spool = { in = "DIR/in" }',
    "spool done": 'spool = { out = "DIR/out", done = "DIR/done" }',
    "log out": 'log = { out = "DIR/out.log" }',
    "log in": 'log = { in = "DIR/in.log" }',
    "file out": 'file = { out = "DIR/one" }',
    "file in": 'file = { in = "DIR/two" }',
}


def takes(endpoint: str) -> bool:
    """True if the endpoint takes messages out of its container."""
    return " out =" in endpoint


def make(directory: Path, owner: int = USER, mode: int = 0o755) -> Path:
    """Make a directory of that owner; return it. Directories above it that are missing belong to root."""
    directory.mkdir(parents=True, exist_ok=True)
    return give(directory, owner, mode)


def write(path: Path, data: bytes, owner: int = USER, mode: int = 0o644) -> Path:
    """Write a file of that owner, under its name only when it is complete; return it."""
    hidden = path.with_name(f".{path.name}")
    hidden.write_bytes(data)
    give(hidden, owner, mode).rename(path)
    return path


def give(path: Path, owner: int, mode: int) -> Path:
    """Change owner, group and mode of what is no link; return it."""
    os.chown(path, owner, owner)
    path.chmod(mode)
    return path


def link(path: Path, target: str, owner: int = USER) -> None:
    """Make a symbolic link of that owner."""
    path.symlink_to(target)
    os.lchown(path, owner, owner)


def replace(path: Path, target: str, owner: int = USER) -> None:
    """Put a link in the place of a directory or a link. A directory stays beside it as NAME.was."""
    if path.is_symlink():
        path.unlink()
    else:
        path.rename(path.with_name(f"{path.name}.was"))
    link(path, target, owner)


def populate(directory: Path, owner: int = USER) -> None:
    """Fill a directory with all that the endpoints of SIDES use."""
    for name in ("out", "in", "done"):
        make(directory / name, owner)
    for name in ("out.log", "in.log", "one", "two"):
        write(directory / name, b"", owner)


class Victim:
    """A directory that only root may enter, with a 0600 file wherever an endpoint of SIDES would find one."""

    def __init__(self, directory: Path, owner: int = 0) -> None:
        self.directory = make(directory, owner, 0o700)
        for name in ("out", "in", "done"):
            make(directory / name, owner, 0o700)
        for name in ("out/mail", "out.log", "in.log", "one", "two"):
            write(directory / name, SECRET, owner, 0o600)
        self.before = self.seen()

    def seen(self) -> dict[str, object]:
        """Return owner, mode and content of everything in it."""
        return dict(_walk(self.directory, self.directory))

    def grow(self) -> None:
        """Append a line to each file and write another, as the program that owns them does."""
        for name in ("out.log", "one"):
            with (self.directory / name).open("ab") as file:
                file.write(SECRET)
        self.before = self.seen()

    def changes(self) -> list[str]:
        """Return the names that appeared, vanished or changed."""
        now = self.seen()
        return [name for name in sorted({*now, *self.before}) if now.get(name) != self.before.get(name)]


def _walk(top: Path, directory: Path) -> Iterator[tuple[str, object]]:
    for path in directory.iterdir():
        about = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(about.st_mode) else b""
        yield str(path.relative_to(top)), (about.st_uid, about.st_gid, about.st_mode, data)
        if stat.S_ISDIR(about.st_mode):
            yield from _walk(top, path)


class Scene:
    """The daemon and both containers. `harm` may be extended by what a test watches for."""

    def __init__(self, daemon: Nsbridged, evil: RuntimeContainer, peer: RuntimeContainer) -> None:
        self.daemon = daemon
        self.evil = evil
        self.peer = peer.rootfs / "srv"
        self.forbidden = {0}  # uids of the host under which no agent may serve
        self.watched: list[Callable[[], list[str]]] = []
        self._sent = 0
        self._killed = -1  # the count of deaths that the test's own kill led to

    def send(self, body: bytes = MESSAGE) -> None:
        """Send a message into the evil container."""
        self._sent += 1
        write(self.peer / f"out/{self._sent}", body)

    def received(self) -> bytes:
        """Return all that has come out of the evil container."""
        return b"".join(contents(self.peer / "in"))

    def wait_received(self, body: bytes) -> None:
        """Wait until a message has come out of the evil container."""
        wait_until(lambda: body in self.received(), f"{body!r} arrives; {self.agent()}; log:\n{self.daemon.said()}", 20)

    def agent(self) -> dict[str, Any]:
        """Return the status of the agent in the evil container."""
        return self.daemon.agents()[EVIL]

    def owner(self) -> int:
        """Return the uid of the running agent; -1 while none runs."""
        agent = self.agent()
        try:
            return int(status_of(agent["pid"])["Uid"][0]) if agent["state"] == "RUNNING" else -1
        except OSError:
            return -1

    def refusal(self) -> str:
        """Return why the agent does not serve; empty if it serves, or is on its way.

        It may also try again by itself, for what the container's programs can put right, or because `enter_again`
        killed it. Any other SIGKILL counts as a refusal.
        """
        agent = self.agent()
        why = str(agent["last_exit"])
        if agent["state"] == "BACKOFF" and "entering anew" not in why and agent["restarts"] != self._killed:
            return why
        return str(agent["detail"]) if agent["state"] == "FATAL" or agent["phase"] == "blocked" else ""

    def harm(self) -> list[str]:
        """Return what must not have happened."""
        found = [f"{SECRET!r} was delivered"] if SECRET in self.received() else []
        found += [f"an agent runs as uid {uid} of the host" for uid in [self.owner()] if uid in self.forbidden]
        return found + [line for watched in self.watched for line in watched()]

    def wait_refused(self, instead: Callable[[], object] = lambda: False) -> str:
        """Wait until the agent is refused, did harm, or `instead` holds; return the reason of a refusal."""
        reasons = [""]

        def ended() -> object:
            reasons.append(self.refusal())
            return reasons[-1] or instead() or self.harm()

        wait_until(ended, f"the agent is refused; {self.agent()}; log:\n{self.daemon.said()}", 20)
        return reasons[-1]

    def assert_harmless(self, *words: str) -> None:
        """Assert that the agent is refused, for a reason with these `words`, and harmless, now and at a new start."""
        for _ in range(2):
            reason = self.wait_refused()
            assert not self.harm(), f"{self.harm()}; {self.agent()}; log:\n{self.daemon.said()}"
            assert not [word for word in words if word not in reason], reason
            self.enter_again()
        self.wait_refused()
        assert not self.harm(), f"{self.harm()}; {self.agent()}"

    def enter_again(self) -> None:
        """Have a new process enter, without the pause that a blocked message costs a graceful restart."""
        agent = self.agent()
        before = agent["pid"]
        if before is None:
            self.daemon.call("start", names=[EVIL])
            return
        with suppress(ProcessLookupError):
            kill_and_wait(before)
            self._killed = agent["restarts"] + 1
        wait_until(lambda: self.agent()["pid"] != before, "the supervisor has seen its end", 20)

    def watch(self, victim: Victim) -> None:
        """Count every change of the victim as harm."""
        self.watched.append(lambda: [f"{name} of {victim.directory} was changed" for name in victim.changes()])


def routes(evil: RuntimeContainer, peer: RuntimeContainer, endpoint: str, agent: str = "") -> str:
    """Return a route between that endpoint and spools of the peer; `agent` is further lines of the evil agent."""
    other = 'spool = { in = "/srv/in" }' if takes(endpoint) else 'spool = { out = "/srv/out" }'
    if takes(endpoint) and " in =" in endpoint:
        other = 'spool = { out = "/srv/out", in = "/srv/in" }'
    return (
        f'[route.r.agent.evil]\ncontainer = "{evil.spec}"\n{endpoint}\n{agent}\n'
        f'[route.r.agent.peer]\ncontainer = "{peer.spec}"\n{other}\n'
    )


@contextmanager
def scene_of(
    tmp_path: Path, evil: RuntimeContainer, peer: RuntimeContainer, endpoint: str, agent: str = ""
) -> Iterator[Scene]:
    """Run a daemon with that route; yield it when the peer's agent runs."""
    for name in ("out", "in"):
        make(peer.rootfs / "srv" / name)
    with Nsbridged(tmp_path, routes(evil, peer, endpoint, agent)) as daemon:
        daemon.wait_for("RUNNING", PEER)
        yield Scene(daemon, evil, peer)
        for pid in daemon.kill():  # a graceful stop would wait for messages that are blocked
            wait_dead(pid)
