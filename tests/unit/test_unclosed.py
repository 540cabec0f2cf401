"""Names what is open at a place of a TOML text, and on which line it was opened."""

from __future__ import annotations

import pytest

from nsbridge.config.unclosed import innermost


@pytest.mark.parametrize(
    ("text", "name", "line"),
    [
        ("a = [1,\n", "an array", 1),
        ("[x]\na = { b = [1, 2]\n", "an inline table", 2),
        ("a = { b = [1, { c = 2 }\n", "an array", 1),
        ("a = 1\nb = '''\n'' { [\n", "a string", 2),
        ('a = """\n" \\""" { [', "a string", 1),
        ('a = "[" # [\nb = [ "]"\n', "an array", 2),
        ("a = '{'\nb = { c = '}'\n", "an inline table", 2),
        ("a = [ # ]\n]\nb = [", "an array", 3),
    ],
)
def test_innermost_names_what_is_open(text: str, name: str, line: int) -> None:
    found = innermost(text, len(text))
    assert found is not None
    assert (found.name, found.line) == (name, line)


@pytest.mark.parametrize("text", ["", "[x]\na = { b = [1, 2] }\n", 'a = """x""""\n', "a = '''[''' # {\n", "a = ]\n"])
def test_nothing_is_open(text: str) -> None:
    assert innermost(text, len(text)) is None


def test_only_what_is_before_the_place_counts() -> None:
    assert innermost("a = [1]\nb = {", 8) is None
