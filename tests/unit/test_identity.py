"""User that an agent becomes: every combination of owner, mapping, memory and configuration against the rules."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.confinement.entry import Gone, RefusedForGood
from nsbridge.agents.identity.identity import IdMap, Ids, UserEvidence, UserRecord, decide, parse_map
from tests.child import fork

ROOT, APP, OTHER = Ids(0, 0), Ids(1000, 1000), Ids(1001, 1001)
BASE = 100_000
IN_ROOT, IN_APP, IN_OTHER = Ids(BASE, BASE), Ids(BASE + 1000, BASE + 1000), Ids(BASE + 1001, BASE + 1001)
PLAIN = IdMap()
MAPPED = IdMap((range(BASE, BASE + 65536),), (range(BASE, BASE + 65536),), BASE)
TO_HOST_ROOT = IdMap((range(1),), (range(1),), 0)  # unshare --map-root-user, as root
UNKNOWN = IdMap((), (), 4294967295)


def decided(ids: IdMap, **about: object) -> Ids | str:
    """Return the user, or the name of what was raised."""
    fields = {"where": "/data/out", "owner": None, "maker": ROOT} | about
    try:
        return decide(UserEvidence(**fields), ids)  # type: ignore[arg-type]
    except (Gone, RefusedForGood) as error:
        return type(error).__name__


# -- one user at a time


@pytest.mark.parametrize("owner", [ROOT, APP])
def test_agent_is_the_owner(owner: Ids) -> None:
    assert decided(PLAIN, owner=owner) == owner


@pytest.mark.parametrize(
    ("ids", "owner", "expected"),
    [
        (MAPPED, IN_ROOT, IN_ROOT),
        (MAPPED, IN_APP, IN_APP),
        (MAPPED, ROOT, "Gone"),
        (MAPPED, APP, "Gone"),
        (MAPPED, Ids(BASE, 0), "Gone"),
        (MAPPED, Ids(BASE + 65536, BASE), "Gone"),
        (TO_HOST_ROOT, ROOT, "Gone"),
        (UNKNOWN, ROOT, "Gone"),
        (UNKNOWN, APP, "Gone"),
    ],
)
def test_owner_must_be_a_user_of_the_container(ids: IdMap, owner: Ids, expected: Ids | str) -> None:
    assert decided(ids, owner=owner) == expected


@pytest.mark.parametrize(
    ("ids", "configured", "expected"),
    [
        (MAPPED, ROOT, "RefusedForGood"),
        (MAPPED, APP, "RefusedForGood"),
        (MAPPED, IN_APP, IN_APP),
        (PLAIN, ROOT, ROOT),
        (TO_HOST_ROOT, ROOT, "RefusedForGood"),
        (UNKNOWN, APP, "RefusedForGood"),
    ],
)
def test_configured_user_must_be_one_of_the_container(ids: IdMap, configured: Ids, expected: Ids | str) -> None:
    assert decided(ids, configured=configured, owner=OTHER, remembered=APP) == expected


@pytest.mark.parametrize("maker", [APP, ROOT])
@pytest.mark.parametrize("remembered", [None, OTHER])
def test_agent_without_endpoint_keeps_its_user(maker: Ids, remembered: Ids | None) -> None:
    assert decided(PLAIN, maker=maker, remembered=remembered) == (remembered or maker)


@pytest.mark.parametrize("maker", [ROOT, APP])
def test_maker_must_be_a_user_of_the_container(maker: Ids) -> None:
    assert decided(MAPPED, maker=maker) == "Gone"


# -- a change of owner


CHANGES = [
    # ids, before, now, followed without user = "owner", followed with it
    (PLAIN, ROOT, APP, True, True),
    (PLAIN, APP, ROOT, False, False),
    (PLAIN, APP, OTHER, False, True),
    (MAPPED, IN_ROOT, IN_APP, True, True),
    (MAPPED, IN_APP, IN_ROOT, False, False),
    (MAPPED, IN_APP, IN_OTHER, False, True),
]


@pytest.mark.parametrize(("ids", "before", "now", "alone", "followed"), CHANGES)
def test_owner_is_followed_only_to_less_power(ids: IdMap, before: Ids, now: Ids, alone: bool, followed: bool) -> None:
    assert decided(ids, owner=now, remembered=before) == (now if alone else "RefusedForGood")
    assert decided(ids, owner=now, remembered=before, follows_owner=True) == (now if followed else "RefusedForGood")


def test_another_group_of_the_same_user_is_followed() -> None:
    assert decided(PLAIN, owner=Ids(1000, 5), remembered=APP) == Ids(1000, 5)


def test_error_of_an_owner_change_names_the_fix() -> None:
    with pytest.raises(RefusedForGood) as refused:
        decide(UserEvidence("/data/out", OTHER, ROOT, remembered=APP), PLAIN)
    assert str(refused.value) == (
        'the owner of /data/out has changed from 1000:1000 to 1001:1001: set user = "1001:1001" on the agent if that '
        'is right, or user = "owner" to follow each change of the owner'
    )


def test_power_never_rises_and_no_stranger_is_entered() -> None:
    """Every combination: who comes out is configured, or owns the endpoint now, or was there before, or makes it."""
    users = [ROOT, APP, OTHER, IN_ROOT, IN_APP, IN_OTHER]
    for ids, owner, before, follows in itertools.product(
        [PLAIN, MAPPED, TO_HOST_ROOT, UNKNOWN], [None, *users], [None, *users], [False, True]
    ):
        who = decided(ids, owner=owner, remembered=before, follows_owner=follows, maker=IN_APP)
        if isinstance(who, str):
            continue
        assert ids.maps(who)
        assert who in {owner, before, IN_APP}
        assert ids is PLAIN or who.uid != 0
        if owner is not None and before is not None and before != owner:
            assert not ids.is_root(who.uid)


# -- what is mapped


def test_map_is_parsed() -> None:
    text = b"         0     100000      65536\n     70000          5          1\n     80000 4294967295          1\n"
    assert parse_map(text) == [(0, range(100000, 165536)), (70000, range(5, 6))]


def test_own_user_namespace_maps_all() -> None:
    assert IdMap.of_container(os.getpid()).maps(Ids(123, 456))
    assert IdMap.of_container(0).maps(Ids(0, 0))
    assert IdMap.of_container(0, "/proc/self/ns/mnt").maps(Ids(0, 0))


@pytest.fixture
def container() -> Iterator[int]:
    """Yield the pid of a process in a user namespace that maps 0 to BASE, and a mount namespace of it."""
    reader, writer = os.pipe()

    def main() -> int:
        linux.unshare(linux.CLONE_NEWUSER)
        linux.unshare(linux.CLONE_NEWNS)
        os.write(writer, b"x")
        signal.pause()
        return 1

    pid = fork(main)
    os.read(reader, 1)
    for kind in ("uid", "gid"):
        Path(f"/proc/{pid}/{kind}_map").write_text(f"0 {BASE} 1000\n5000 7 1\n", encoding="ascii")
    yield pid
    os.close(reader)
    os.close(writer)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_map_of_a_container_is_read(container: int) -> None:
    ids = IdMap.of_container(container)
    assert ids == IdMap((range(BASE, BASE + 1000), range(7, 8)), (range(BASE, BASE + 1000), range(7, 8)), BASE)
    assert ids.trusted == {0, BASE}
    assert str(ids) == "100000-100999, 7-7"


def test_namespace_file_of_a_user_namespace_maps_no_user(container: int) -> None:
    """Without a process the map is unknown: `user` is required, and is refused as well."""
    assert not IdMap.of_container(0, f"/proc/{container}/ns/mnt").maps(Ids(BASE, BASE))


def test_container_that_ended_is_gone() -> None:
    with pytest.raises(Gone, match="is not there any more"):
        IdMap.of_container(1 << 22)
    with pytest.raises(Gone, match="is not there any more"):
        IdMap.of_container(0, "/nonexistent")


# -- what is remembered


def remember(path: Path, key: str = "k", instance: int = 1) -> UserRecord:
    return UserRecord(os.open(path / "a", os.O_RDWR | os.O_CREAT, 0o600), [key], [instance, 2])


def test_memory_keeps_user_and_mounts(tmp_path: Path) -> None:
    first = remember(tmp_path)
    assert (first.who, first.mounts) == (None, None)
    first.keep(APP, frozenset({b"app.log", b"\xff"}))
    first.close()
    second = remember(tmp_path)
    assert (second.who, second.mounts) == (APP, frozenset({b"app.log", b"\xff"}))
    second.keep(ROOT, frozenset())  # shorter
    second.close()
    third = remember(tmp_path)
    assert (third.who, third.mounts) == (ROOT, frozenset())
    third.close()


def test_memory_is_of_one_endpoint_and_mounts_of_one_life(tmp_path: Path) -> None:
    first = remember(tmp_path)
    first.keep(APP, frozenset({b"app.log"}))
    first.close()
    for key, instance, expected in (("k", 5, (APP, None)), ("other", 1, (None, None))):
        memory = remember(tmp_path, key, instance)
        assert (memory.who, memory.mounts) == expected
        memory.close()


@pytest.mark.parametrize("damage", [b"", b"\n", b"{", b"[]\n", b'{"key": ["k"]}\n', b"\xff\n", b'"k"\n'])
def test_damaged_memory_remembers_nothing(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "a").write_bytes(damage)
    memory = remember(tmp_path)
    assert (memory.who, memory.mounts) == (None, None)
    memory.keep(APP, frozenset())
    memory.close()


def test_long_paths_are_remembered(tmp_path: Path) -> None:
    """A record that is not read again would have every entry be the first one."""
    path = "/é" * 1365  # PATH_MAX
    names = frozenset(("é" * 127 + end).encode() for end in "ab")
    for _ in range(2):
        memory = remember(tmp_path, path)
        memory.keep(APP, names)
        memory.close()
    memory = remember(tmp_path, path)
    assert (memory.who, memory.mounts) == (APP, names)
