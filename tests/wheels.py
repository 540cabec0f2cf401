"""Builds nsbridge's wheel for tests: of this tree, or of a former commit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[1]
_GIT = ("git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT))


def repository() -> set[str]:
    """Return the names of the repository's files, by Git, or in an unpacked sdist by the sdist's own list."""
    if (ROOT / ".git").exists():
        git = (*_GIT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        listed = subprocess.run(git, check=True, capture_output=True, text=True).stdout.split("\0")
    else:
        listed = (ROOT / "nsbridge.egg-info/SOURCES.txt").read_text(encoding="utf-8").splitlines()
        listed += [link.relative_to(ROOT).as_posix() for link in (ROOT / ".typecheck/nsbridge").iterdir()]
    there = {name for name in listed if name and os.path.lexists(ROOT / name)}  # some may be deleted, not yet committed
    return {name for name in there if not name.startswith("nsbridge.egg-info/")}


def copy_repository(tree: Path) -> None:
    """Copy the repository's files into `tree`, so that no old build gets into a new one."""
    for name in repository():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)


def copy_commit(commit: str, tree: Path) -> bool:
    """Unpack a commit into `tree`; return False if this copy of the repository does not have it."""
    packed = subprocess.run((*_GIT, "archive", commit), check=False, capture_output=True)
    if packed.returncode != 0:
        return False
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(tree, filter="tar")
    return True


def wheel(tree: Path, out: Path) -> Path:
    """Build the wheel of a tree without the network; return its path."""
    command: list[str | Path] = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, tree]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.glob("nsbridge-*.whl")
    return made
