"""Files below a prefix's `share`: manual pages, and each shell's completion where that shell looks for it.

`python -m nsbridge.supervisor.cli.commands.share /usr/local/share` writes them. setup.py puts the same into a wheel, so
that pip installs them below its own prefix; it names the version too, which is not installed while a wheel is built.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from nsbridge.supervisor.cli.commands import bash, fish, manpages, zsh
from nsbridge.supervisor.cli.commands.completion import PROGRAMS
from nsbridge.supervisor.cli.commands.manpages import Edition

_PACKAGE = Path(__file__).parents[3]
_TREE = Path(__file__).resolve().parents[3]
_EXAMPLE = _PACKAGE / "config" / "example.toml"
_EXPLAINED = (_PACKAGE / "config" / "configuration.md", _TREE / "docs" / "configuration.md")  # in a wheel; in the tree


def files(release: str) -> dict[str, str]:
    """Return the text of each by its path below `share`."""
    edition = Edition(release, _day())
    explained, example = (path.read_text(encoding="utf-8") for path in (_explained(), _EXAMPLE))
    texts = {"man/man5/nsbridge.toml.5": manpages.configuration_page(explained, example, edition)}
    for program in PROGRAMS:
        texts[f"man/man{program.section}/{program.name}.{program.section}"] = manpages.page(program, edition)
        texts[f"bash-completion/completions/{program.name}"] = bash.script([program])
        texts[f"fish/vendor_completions.d/{program.name}.fish"] = fish.script([program])
    texts["zsh/site-functions/_nsbridge"] = zsh.script(PROGRAMS)
    return texts


def write(directory: Path, release: str) -> list[str]:
    """Write all of them below `directory`; their paths below it. Raises OSError."""
    texts = files(release)
    for name, text in texts.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(texts)


def _explained() -> Path:
    return next((path for path in _EXPLAINED if path.exists()), _EXPLAINED[-1])


def _day() -> str:
    """Return today, or the day that a reproducible build sets (https://reproducible-builds.org/docs/source-date-epoch)."""
    return datetime.fromtimestamp(float(os.environ.get("SOURCE_DATE_EPOCH") or time.time()), UTC).strftime("%Y-%m-%d")


def main(argv: list[str]) -> int:
    """Run the command; return its exit code."""
    if len(argv) not in {1, 2} or argv[0].startswith("-"):
        sys.stderr.write(
            "usage: python -m nsbridge.supervisor.cli.commands.share DIRECTORY [VERSION], such as /usr/local/share\n"
        )
        return 2
    try:
        written = write(Path(argv[0]), argv[1] if len(argv) > 1 else version("nsbridge"))
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n")
        return 1
    sys.stdout.writelines(f"{Path(argv[0]) / name}\n" for name in written)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
