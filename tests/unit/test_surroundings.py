"""An agent's examination before it is confined, in its own root directory, as real root and then as the user."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nsbridge.agents import linux
from nsbridge.agents.confinement.entry import Gone
from nsbridge.agents.endpoints.files import Tree
from nsbridge.agents.endpoints.log.config import LogEndpoint
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.identity.identity import IdMap
from nsbridge.agents.identity.surroundings import FileSurroundings, memory
from nsbridge.config.schema import AgentConfig, Container, User
from nsbridge.supervisor.containers import engines
from tests.child import in_child
from tests.unit.test_entering import assignment

APP, OTHER, INIT = 1000, 1001, 1005
SPOOL = SpoolEndpoint(out="/data/out", in_="/data/in", done="/data/done")


def open_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


class Room:
    """A container's root below a directory, and a state directory outside of it."""

    def __init__(self, path: Path) -> None:
        self.root = path / "root"
        self._state = path / "state"
        (self.root / "data").mkdir(parents=True)

    def make(self, path: str, uid: int, mode: int = 0o755) -> None:
        (self.root / path).mkdir(exist_ok=True)
        os.chown(self.root / path, uid, uid)
        os.chmod(self.root / path, mode)

    def inside(
        self, then: Callable[[FileSurroundings], object], endpoint: Any = SPOOL, user: User | None = None
    ) -> Any:
        """Return the result of `then` for the surroundings, or the error."""
        agent = AgentConfig("r:a", Container(engines.host.KIND, ""), endpoint, user)
        given = assignment(agent=agent, container_pid=0, state_dir=str(self._state), init_user=(INIT, INIT))

        def child() -> object:
            remembered = memory(given, open_file(self._state))
            os.chroot(self.root)
            os.chdir("/")
            try:
                return then(FileSurroundings(given, IdMap(), remembered))
            except Gone as error:
                return f"Gone: {error}"

        return in_child(child)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def look(around: FileSurroundings) -> object:
    return around.look()[0]


def test_agent_is_the_owner_of_out_then_of_in(room: Room) -> None:
    room.make("data/in", OTHER)
    assert room.inside(look) == OTHER
    room.make("data/out", OTHER)
    room.make("data/in", APP)
    assert room.inside(look) == OTHER


@pytest.mark.parametrize(
    ("owner", "mode", "maker"),
    [(APP, 0o755, APP), (APP, 0o1777, APP), (0, 0o755, 0), (0, 0o775, 0), (0, 0o777, INIT), (0, 0o1777, INIT)],
)
def test_missing_endpoint_is_made_by_the_likely_owner(room: Room, owner: int, mode: int, maker: int) -> None:
    """The owner of its directory; but /tmp belongs to root and says nothing about the program."""
    room.make("data", owner, mode)
    assert room.inside(look) == maker


def test_missing_directory_says_nothing_about_the_maker(room: Room) -> None:
    (room.root / "data").rmdir()
    assert room.inside(look) == INIT


def test_guess_is_not_remembered(room: Room) -> None:
    """The program may make its endpoint as another user, later: that is no change of owner."""
    room.make("data", 0, 0o1777)
    assert room.inside(look) == INIT
    room.make("data/out", APP)
    assert room.inside(look) == APP


def test_owner_is_remembered_while_the_endpoint_is_gone(room: Room) -> None:
    room.make("data/out", APP)
    assert room.inside(look) == APP
    (room.root / "data/out").rmdir()
    assert room.inside(look) == APP


def test_configured_user_needs_no_owner(room: Room) -> None:
    room.make("data/out", APP)
    assert room.inside(look, user=User(OTHER, OTHER)) == OTHER


@pytest.mark.parametrize("side", ["out", "in", "done"])
def test_link_of_a_stranger_is_refused_on_every_path(room: Room, side: str) -> None:
    room.make("data/real", 0)
    places = {name: f"/data/{name}" for name in ("out", "in", "done")} | {side: f"/data/link/{side}"}
    (room.root / "data/link").symlink_to("real")
    os.chown(room.root / "data/link", APP, APP, follow_symlinks=False)
    room.make("data/real/out", 0)
    said = room.inside(look, SpoolEndpoint(out=places["out"], in_=places["in"], done=places["done"]))
    assert said.startswith(f"Gone: /data/link belongs to uid {APP}, who could make /data/link/{side} lead anywhere")


def test_link_that_the_agent_s_own_user_made_is_followed(room: Room) -> None:
    """Also by an absolute one, which leads through directories of root."""
    room.make("data/home", APP)
    room.make("data/home/release", APP)
    room.make("data/home/release/out", APP)
    (room.root / "data/home/current").symlink_to("/data/home/release")
    os.chown(room.root / "data/home/current", APP, APP, follow_symlinks=False)
    assert room.inside(look, SpoolEndpoint(out="/data/home/current/out")) == APP


def test_path_is_walked_again_as_the_user(room: Room) -> None:
    """A change in between is detected; a path that the user may not follow is not reached."""
    room.make("data/out", APP)

    def swap(around: FileSurroundings) -> object:
        around.look()
        os.rename("/data/out", "/data/was")
        os.symlink("/etc", "/data/out")
        os.mkdir("/etc")
        os.chown("/data", OTHER, OTHER)
        os.setresuid(APP, APP, APP)
        return [os.readlink(f"/proc/self/fd/{fd}") for fd in around.reach()]

    assert room.inside(swap).startswith(f"Gone: /data belongs to uid {OTHER}, who could make /data/out lead anywhere")


def test_each_path_is_walked_once_by_each_user(room: Room) -> None:
    """A killed agent waits for these walks before it serves again; each begins by opening the root directory."""
    for name in ("out", "in", "done"):
        room.make(f"data/{name}", APP)

    def entered(around: FileSurroundings) -> list[int]:
        walks: list[object] = []
        sys.addaudithook(lambda event, about: walks.append(about) if event == "open" and about[0] == "/" else None)
        room_uid = around.look()[0]
        as_root = len(walks)
        os.setresuid(room_uid, room_uid, room_uid)
        around.reach()
        return [as_root, len(walks) - as_root]

    assert room.inside(entered) == [3, 3]


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_directory_of_the_endpoint_is_reached(room: Room, mode: int) -> None:
    """Also one that the user may not search: then the agent is blocked, and Landlock leaves it nothing above it."""
    room.make("data/below", 0)
    room.make("data/below/out", APP)

    def reach(around: FileSurroundings) -> list[int]:
        around.look()
        os.chmod("/data/below", mode)
        os.setresuid(APP, APP, APP)
        return [os.fstat(fd).st_ino for fd in around.reach()]

    assert room.inside(reach, SpoolEndpoint(out="/data/below/out")) == [(room.root / "data/below").stat().st_ino]


@pytest.mark.parametrize("endpoint", [SPOOL, LogEndpoint(out="/data/out")])
def test_new_owner_is_noticed(room: Room, endpoint: SpoolEndpoint | LogEndpoint) -> None:
    room.make("data/out", 0)

    def chowned(around: FileSurroundings) -> object:
        around.look()
        around.recheck()
        os.chown("/data/out", APP, APP)
        around.recheck()
        return "same"

    said = room.inside(chowned, endpoint)
    assert said == f"Gone: /data/out belongs to {APP}:{APP} now, and the agent is 0:0; entering anew"
    assert room.inside(chowned, endpoint, User(0, 0)) == "same"


def test_mounts_are_those_of_the_first_entry(room: Room, tmp_path: Path) -> None:
    """A container that mounts a file over the log later does not get it opened by having the agent enter anew."""
    for name in ("data/app.log", "data/in.log", "other"):
        (room.root / name).touch()
    endpoint = LogEndpoint(out="/data/app.log", in_="/data/in.log")

    def child(*names: str) -> list[list[str]]:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
        found = []
        for name in names:
            linux.mount(str(room.root / "other"), str(room.root / "data" / name), flags=linux.MS_BIND)
            found.append(in_child(lambda: entered(tmp_path, endpoint)))
        return found

    assert in_child(lambda: child("app.log", "in.log")) == [["app.log"], ["app.log"]]


def entered(tmp_path: Path, endpoint: LogEndpoint) -> list[str]:
    agent = AgentConfig("r:a", Container(engines.host.KIND, ""), endpoint)
    given = assignment(agent=agent, container_pid=0, state_dir=str(tmp_path / "state"))
    around = FileSurroundings(given, IdMap(), memory(given, open_file(tmp_path / "state")))
    os.chroot(tmp_path / "root")
    around.look()
    return sorted(map(os.fsdecode, around.mounts))


@pytest.mark.parametrize(
    ("side", "agent", "other", "served"),
    [
        ("in", 0, OTHER, False),
        ("done", 0, OTHER, False),
        ("in", 0, 0, True),
        ("in", APP, OTHER, True),
        ("in", APP, 0, True),
    ],
)
def test_root_s_agent_uses_no_directory_of_a_stranger(
    room: Room, side: str, agent: int, other: int, *, served: bool
) -> None:
    """Its owner could have made it first, in /tmp, and would get what is for root. A user's agent has no such power."""
    for name in ("out", "in", "done"):
        room.make(f"data/{name}", other if name == side else agent)
    said = room.inside(look)
    assert said == agent if served else f"/data/{side} belongs to uid {other}" in said
    assert room.inside(look, user=User(0, 0)) == 0, "the operator has decided"


@pytest.mark.parametrize("user", [None, User(0, 0)])
def test_directory_that_became_a_stranger_s_is_not_opened(room: Room, user: User | None) -> None:
    """The owner of `out` may change while the agent runs, and only the open directory shows it."""
    room.make("data/out", 0)

    def opened(around: FileSurroundings) -> object:
        around.look()
        os.chown("/data/out", APP, APP)
        os.close(Tree(-1, around=around).open_directory(b"/data/out", 0o660))
        return "opened"

    said = room.inside(opened, SpoolEndpoint(out="/data/out"), user)
    assert said == "opened" if user else f"/data/out belongs to uid {APP}" in said


def test_owner_is_compared_once_more_after_the_change_of_user(room: Room) -> None:
    """With the owner's group the agent may search a directory that the owner may not, who led it there meanwhile."""
    room.make("data/out", APP)

    def reached(around: FileSurroundings) -> object:
        uid, gid = around.look()
        os.rename("/data/out", "/data/was")
        os.mkdir("/data/out")
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        around.reach()
        return "reached"

    assert f"/data/out belongs to 0:0 now, and the agent is {APP}:{APP}" in room.inside(reached)
