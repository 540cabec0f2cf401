"""Maps the three top-level directories to `nsbridge.*`: docs/architecture.md gives the reason.

A wheel also has manual pages and completion, made from the tables of commands. An sdist holds every file of the
repository. With SOURCE_DATE_EPOCH set, two builds are equal byte for byte. All else is in pyproject.toml.
"""

import gzip
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
TOPS = ("supervisor", "agents", "config")
PACKAGES = sorted(
    ".".join(found.parent.relative_to(HERE).parts) for top in TOPS for found in (HERE / top).rglob("__init__.py")
)
MADE = Path("build") / "share"
LINKS = sorted((HERE / ".typecheck" / "nsbridge").iterdir())  # setuptools would copy what they lead to


class BuildWithPages(build_py):
    """Build as build_py does, and make the data files: they are not in the tree, so they cannot be out of date.

    The reference of the configuration goes along, because nsbridge.toml(5) is made of it again on the host.
    """

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            page = Path(self.build_lib) / "nsbridge" / "config" / "configuration.md"
            page.write_bytes((HERE / "docs" / "configuration.md").read_bytes())
        made = [Path("share") / name for name in self._make()]
        folders = dict.fromkeys(path.parent for path in made)
        self.distribution.data_files = [
            (str(folder), [str("build" / path) for path in made if path.parent == folder]) for folder in folders
        ]

    def _make(self) -> list[str]:
        """Write the pages in a Python that imports this tree as nsbridge.*; return their paths below `share`."""
        with TemporaryDirectory() as place:
            package = Path(place) / "nsbridge"
            package.mkdir()
            for top in TOPS:
                (package / top).symlink_to(HERE / top)
            module, release = "nsbridge.supervisor.cli.commands.share", self.distribution.get_version()
            subprocess.run(  # noqa: S603
                [sys.executable, "-m", module, HERE / MADE, release],
                env=os.environ | {"PYTHONPATH": place, "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=subprocess.DEVNULL,
                check=True,
            )
        return sorted(path.relative_to(HERE / MADE).as_posix() for path in (HERE / MADE).rglob("*") if path.is_file())


class CompleteSdist(sdist):
    """An archive in the order of names, of one time and without an owner."""

    def make_archive(
        self,
        base_name: Any,
        format: str,  # noqa: A002
        root_dir: Any = None,  # noqa: ARG002
        base_dir: Any = None,
        owner: str | None = None,  # noqa: ARG002
        group: str | None = None,  # noqa: ARG002
    ) -> str:
        """Write the release tree `base_dir` as .tar.gz; return the archive's path."""
        if format != "gztar":
            raise SystemExit(f"setup.py: an sdist is made as gztar, not as {format}")
        at = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
        release = Path(base_dir)

        def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = at
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        path = Path(f"{base_name}.tar.gz")
        with (
            path.open("wb") as raw,
            gzip.GzipFile("", "wb", mtime=at, fileobj=raw) as packed,
            tarfile.open(mode="w", fileobj=packed, format=tarfile.PAX_FORMAT) as archive,
        ):
            for found in sorted(release.rglob("*")):
                archive.add(found, recursive=False, filter=plain)
            for link in LINKS:
                archive.add(link, str(release / link.relative_to(HERE)), recursive=False, filter=plain)
        return str(path)


setup(
    packages=[f"nsbridge.{name}" for name in PACKAGES],
    package_dir={f"nsbridge.{name}": name.replace(".", "/") for name in PACKAGES},
    package_data={"nsbridge.config": ["example.toml"], "nsbridge.supervisor.cli.web": ["templates/*", "static/*"]},
    cmdclass={"build_py": BuildWithPages, "sdist": CompleteSdist},
)
