"""A walk of a path: where it ends, and who could redirect it, held against a kernel's own walk and every owner."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.identity.walk import Step, WalkEnd, redirector, redirects, walk
from tests.child import in_child

APP, OTHER = 1000, 1001


@pytest.fixture
def root() -> Iterator[int]:
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a/b/file, and links of every kind to it."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(b"x")
    for name, target in LINKS.items():
        (tmp_path / name).symlink_to(target.replace("TOP", str(tmp_path)))
    return tmp_path


LINKS = {
    "absolute": "TOP/a",
    "relative": "a",
    "up": "a/../a/b/..",
    "here": ".",
    "slashes": ".//a/./b//",
    "chain": "up/b",
    "loop": "loop",
    "to-root": "/",
    "dangling": "a/none/x",
    "through-file": "a/b/file/x",
}


def inode(place: WalkEnd) -> int | None:
    return place.status.st_ino if place.status else None


def kernel_walk(root: int, path: bytes, flags: int) -> tuple[int | None, int]:
    """Return inode and errno. The kernel gives up on ".." (EAGAIN) if anything on the machine is renamed meanwhile."""
    while True:
        try:
            fd = linux.openat2(root, path, flags, 0, linux.RESOLVE_IN_ROOT)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return None, error.errno or 0
        else:
            found = os.fstat(fd).st_ino
            os.close(fd)
            return found, 0


PATHS = [
    f"{start}{end}"
    for start, end in itertools.product(
        ["a", *LINKS], ["", "/", "/b", "/b/file", "/file", "/.", "/..", "/none", "/none/x"]
    )
]


@pytest.mark.parametrize("follow_last", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_walk_ends_where_the_kernel_ends(root: int, tree: Path, path: str, *, follow_last: bool) -> None:
    """Compare with openat2(2), which ignores owners. A trailing slash does not make the walk follow the last link."""
    whole = os.fsencode(tree / path) if not path.endswith(("/", "/.")) else os.fsencode(f"{tree}/{path}").rstrip(b"/.")
    expected, number = kernel_walk(root, whole, os.O_PATH | (0 if follow_last else os.O_NOFOLLOW))
    with walk(root, whole, follow_last=follow_last) as place:
        assert (inode(place), place.error.errno if place.error else 0) == (expected, number)


def test_walk_stays_in_the_root(tmp_path: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/out").symlink_to("../../../../sub")
    (tmp_path / "in/abs").symlink_to("/sub")

    def child() -> list[int | None]:
        os.chroot(tmp_path / "in")
        inside = os.open("/", os.O_PATH | os.O_DIRECTORY)
        return [inode(walk(inside, path, follow_last=True)) for path in (b"/out", b"/abs", b"/../../sub")]

    assert in_child(child) == [(tmp_path / "in/sub").stat().st_ino] * 3


def test_walk_closes_what_it_opened(root: int, tree: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for path, follow_last in itertools.product(PATHS, [True, False]):
        walk(root, os.fsencode(tree / path), follow_last=follow_last).close()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("path", "is_missing", "directory"),
    [
        ("a/b/x", True, "a/b"),
        ("a/x/y", False, "a"),
        ("dangling", True, ""),
        ("a/b/file", False, "a/b"),
        ("loop/x", False, ""),
    ],
)
def test_walk_returns_the_deepest_directory(root: int, tree: Path, path: str, is_missing: bool, directory: str) -> None:
    with walk(root, os.fsencode(tree / path)) as place:
        is_link = place.status is not None and path == "dangling"
        assert place.is_missing is (is_missing and not is_link)
        assert os.path.samestat(os.fstat(place.directory), (tree / directory).stat())


def test_walk_gives_up_on_links_within_links(root: int, tmp_path: Path) -> None:
    """Each doubles the names that the next one stands for; the kernel looks up some thousands of them."""
    (tmp_path / "0").symlink_to("d/../" * 500)
    (tmp_path / "d").mkdir()
    for number in range(1, 30):
        (tmp_path / str(number)).symlink_to("/".join([str(number - 1)] * 2))
    with walk(root, os.fsencode(tmp_path / "29/x")) as place:
        assert place.error is not None
        assert place.error.errno == errno.ELOOP


def test_walk_follows_no_link_of_proc(root: int) -> None:
    with walk(root, b"/proc/self/root/etc") as place:
        assert place.error is not None
        assert place.error.errno == errno.ELOOP


# -- who can redirect it


def uids(root: int, path: Path, *, follow_last: bool = False) -> list[int]:
    with walk(root, os.fsencode(path), follow_last=follow_last) as place:
        return [step.uid for step in place.steps]


def test_steps_are_directories_and_links_but_not_the_end(root: int, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").touch()
    (tmp_path / "link").symlink_to("d")
    for path, uid in (("d", 10), ("d/file", 11), ("link", 12)):
        os.chown(tmp_path / path, uid, uid, follow_symlinks=False)
    above = len(tmp_path.parts)
    assert uids(root, tmp_path / "d/file")[above:] == [10]
    assert uids(root, tmp_path / "link/file")[above:] == [12, 0, 10]
    assert uids(root, tmp_path / "link")[above:] == []
    assert uids(root, tmp_path / "link", follow_last=True)[above:] == [12, 0]
    assert uids(root, tmp_path / "d/missing")[above:] == [10]


@pytest.mark.parametrize("end", [0, APP, OTHER])
@pytest.mark.parametrize("link", [0, APP, OTHER])
@pytest.mark.parametrize("parent", [0, APP, OTHER])
def test_only_root_and_the_agent_may_redirect(root: int, tmp_path: Path, parent: int, link: int, end: int) -> None:
    """The agent is the owner of the end: a user who can redirect the path must not have less power."""
    (tmp_path / "real").mkdir()
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent/link").symlink_to(tmp_path / "real")
    for path, uid in (("parent", parent), ("parent/link", link), ("real", end)):
        os.chown(tmp_path / path, uid, uid, follow_symlinks=False)
    with walk(root, os.fsencode(tmp_path / "parent/link"), follow_last=True) as place:
        found = redirector(place.steps, frozenset({0, end}))
    is_safe = {parent, link} <= {0, end}
    assert (found is None) is is_safe
    if found is not None:
        assert found.uid in {parent, link} - {0, end}


def test_a_redirector_is_named_with_what_to_do() -> None:
    assert redirects(Step(b"/home/app", 1000), b"/home/app/spool/\xff") == (
        "/home/app belongs to uid 1000, who could make /home/app/spool/\\xff lead anywhere: chown it to root or to the "
        "owner of /home/app/spool/\\xff, or set user on the agent to uid 1000"
    )
