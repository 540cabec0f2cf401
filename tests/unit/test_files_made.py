"""Files that are mounted over others, and files that an agent makes where one is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsbridge.agents import linux
from nsbridge.agents.endpoints.files import NotAFileError, Tree
from tests.child import in_child
from tests.unit.test_entering import Nobody

# -- mounts over files


def mounted_over(tmp_path: Path, source: str, *, allowed: bool) -> str:
    """Return the error of opening a file over which `source` was mounted."""
    (tmp_path / "x").write_bytes(b"covered")
    (tmp_path / "other").write_bytes(b"other")

    def child() -> str:
        own_fds = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
        linux.mount(source.replace("TMP", str(tmp_path)), str(tmp_path / "x"), flags=linux.MS_BIND)
        around = Nobody()
        around.mounts = frozenset({b"x"} if allowed else ())
        tree = Tree(own_fds, around=around)
        directory = tree.open_directory(os.fsencode(tmp_path))
        try:
            return os.read(tree.open_file(directory, b"x", os.O_RDONLY), 100).decode()
        except NotAFileError as error:
            return str(error.strerror)

    said = in_child(child)
    assert isinstance(said, str)
    return said


def test_file_with_another_one_mounted_over_it_is_not_opened(tmp_path: Path) -> None:
    assert mounted_over(tmp_path, "TMP/other", allowed=False) == "another file is mounted over it"


def test_file_that_was_a_mount_at_the_entry_is_opened(tmp_path: Path) -> None:
    """The same happens with docker run -v /host/app.log:/var/log/app.log."""
    assert mounted_over(tmp_path, "TMP/other", allowed=True) == "other"


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("/proc/sys/kernel/core_pattern", "proc"),
        ("/proc/sys/vm/swappiness", "proc"),
        ("/proc/sys/net/ipv4/ip_forward", "proc"),
        ("/proc/self/oom_score_adj", "proc"),
        ("/sys/kernel/profiling", "sysfs"),
    ],
)
def test_file_of_the_kernel_is_never_opened(tmp_path: Path, source: str, kind: str, *, allowed: bool) -> None:
    said = mounted_over(tmp_path, source, allowed=allowed)
    assert said == f"a file of a {kind} file system is mounted over it"


# -- files that are made


def test_missing_file_is_made_once_and_logged_with_its_owner(tmp_path: Path) -> None:
    logged: list[tuple[str, str]] = []
    tree = Tree(-1, log=lambda *said: logged.append(said))
    directory = tree.open_directory(os.fsencode(tmp_path))
    path = os.fsencode(tmp_path / "app.log")
    assert tree.make_file(directory, path, 0o640) == (tmp_path / "app.log").stat().st_mtime_ns
    assert tree.make_file(directory, path, 0o640) == 0
    assert logged == [("info", f"{tmp_path}/app.log was missing and is made, mode 0640, owner 0:0")]
    os.close(directory)
    tree.close()
