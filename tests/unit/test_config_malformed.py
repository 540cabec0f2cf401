"""Every file in malformed/ is refused for exactly the reasons that its `# expect: WHERE` lines give.

WHERE is a key path, or for an error of TOML itself the line (the column is tomllib's affair, and may change with it);
empty means the file as a whole.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from nsbridge.config.errors import EXIT_USAGE, ConfigError
from nsbridge.config.load import load

FILES = sorted((Path(__file__).parent / "malformed").glob("*.toml"))


def expected(path: Path) -> list[str]:
    lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    return sorted(line.removeprefix("# expect:").strip() for line in lines if line.startswith("# expect:"))


def where(problem: str, path: Path) -> str:
    """Return the text between the file's name and the problem (no key here has a colon in it)."""
    place, colon, _ = problem.removeprefix(f"{path}: ").partition(": ")
    if place.startswith("line "):
        return place.partition(", column")[0]
    is_place = colon and (" " not in place or '"' in place or place == "end of document")
    return place if is_place else ""


def test_there_are_enough_malformed_files_with_expectations() -> None:
    assert len(FILES) >= 40
    assert [path.name for path in FILES if not expected(path)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_malformed_file_is_refused_with_every_problem_at_its_key(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(path))

    problems = caught.value.problems
    assert sorted(where(problem, path) for problem in problems) == expected(path), "\n".join(problems)
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_problem_of_a_malformed_file_is_one_line_with_a_fix(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(path))

    for problem in caught.value.problems:
        assert problem.isprintable(), problem
        assert problem.startswith(f"{path}: ")
        assert "; " in problem
        assert "Traceback" not in problem
        assert len(problem) < 500 + len(str(path))
