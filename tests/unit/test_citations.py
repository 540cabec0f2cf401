"""Comments, docstrings, docs and tests name only files of this project that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.wheels import repository

ROOT = Path(__file__).parents[2]
WHERE = re.compile(r"(agents|supervisor|config|tests|docs|benchmarks|examples|packaging)/|[^/]*\.(md|toml)$|setup\.py$")
_CITED = re.compile(r"(?<![\w/.*{}$<>-])(?:\.\./)*((?:[\w.-]+/)*[\w-]+\.(?:py|md))\b")
OTHERS = {  # a citing file, and what it may name though it is no file of this project
    "docs/site/build.py": {"docs/keys.md", "keys.md"},  # a page that it makes
    "supervisor/cli/commands/reference.py": {"to.md"},
    "tests/system/hostile.py": {"threading.py"},
    "tests/unit/test_frozen.py": {"pretended.py"},
    "tests/unit/test_house.py": {"config/configuration.md"},  # in a wheel: a copy of the page
    "tests/unit/test_reference.py": {"page.md"},
    "tests/unit/test_workers.py": {"tests/test_a.py", "tests/test_c.py"},
}
NOT_READ = "tests/unit/test_citations.py"  # its examples


def files() -> list[str]:
    return sorted(name for name in repository() if WHERE.match(name) and (ROOT / name).is_file())


def wrong(text: str, known: list[str]) -> list[str]:
    """Return `LINE: NAME` of each cited file that does not exist; a name may leave out its first directories."""
    ends = {name[at:] for name in known for at in (0, *(sign.end() for sign in re.finditer("/", name)))}
    lines = enumerate(text.splitlines(), 1)
    return [f"{at}: {cited}" for at, line in lines for cited in _CITED.findall(line) if cited not in ends]


def test_every_cited_file_exists() -> None:
    known = files()
    found = []
    for name in known:
        if name.endswith((".py", ".md", ".toml", ".sh")) and name != NOT_READ:
            cited = wrong((ROOT / name).read_text(errors="replace"), known)
            found += [f"{name}:{where}" for where in cited if where.split()[1] not in OTHERS.get(name, set())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["# see gone.py", '"""As agents/gone.py says."""', "[it](../agents/gone.py)"])
def test_missing_file_is_found(text: str) -> None:
    assert wrong(text, ["agents/here.py"]) == [f"1: {'gone.py' if 'see' in text else 'agents/gone.py'}"]


@pytest.mark.parametrize(
    "text", ["# see here.py", "`agents/here.py`", "[it](../agents/here.py)", "https://x.org/a/b.py"]
)
def test_existing_file_is_not_reported(text: str) -> None:
    assert not wrong(text, ["agents/here.py"])
