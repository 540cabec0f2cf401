"""Maps the three top-level directories to `nsbridge.*` (docs/architecture.md says why) and makes what else a wheel has.

That is manual pages and the shells' completion, from the tables of commands. All else is in pyproject.toml.
"""

import sys
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
TOPS = ("supervisor", "agents", "config")
PACKAGES = sorted(
    ".".join(found.parent.relative_to(HERE).parts) for top in TOPS for found in (HERE / top).rglob("__init__.py")
)
MADE = Path("build") / "share"


class BuildWithPages(build_py):
    """Build as build_py does, and make the data files: they are not in the tree, so they cannot be out of date."""

    def run(self) -> None:
        """Build."""
        super().run()
        made = [Path("share") / name for name in self._make()]
        folders = dict.fromkeys(path.parent for path in made)
        self.distribution.data_files = [
            (str(folder), [str("build" / path) for path in made if path.parent == folder]) for folder in folders
        ]

    def _make(self) -> list[str]:
        """Write them; their paths below `share`. The package cannot be imported under its name yet, but from here."""
        package = ModuleType("nsbridge")
        package.__path__ = [str(HERE)]
        sys.modules["nsbridge"] = package
        from nsbridge.supervisor.cli.commands import share  # noqa: PLC0415

        return share.write(HERE / MADE, self.distribution.get_version())


setup(
    packages=[f"nsbridge.{name}" for name in PACKAGES],
    package_dir={f"nsbridge.{name}": name.replace(".", "/") for name in PACKAGES},
    package_data={"nsbridge.config": ["example.toml"]},
    cmdclass={"build_py": BuildWithPages},
)
