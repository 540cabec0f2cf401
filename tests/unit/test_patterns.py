"""Two routes share a spool's directory only if no name can be for both."""

from __future__ import annotations

import fnmatch
import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbridge.agents.endpoints.spool.config import TEMPORARY_NAMES
from nsbridge.config.patterns import TakenNames, TooManyError, common_name

ALL = ("*",)


def takes(names: TakenNames, name: str) -> bool:
    """Decide it as an agent does."""

    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return not name.startswith(".") and matches(names.match) and not matches(names.ignore)


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (TakenNames(["*.xml"]), TakenNames(["*.csv"]), None),
        (TakenNames(["*.xml"]), TakenNames(["a*"]), b"a.xml"),
        (TakenNames(["*.xml"]), TakenNames(ALL), b"a.xml"),
        (TakenNames(["*.xml"]), TakenNames(ALL, ["*.xml"]), None),
        (TakenNames(["*.xml"], TEMPORARY_NAMES), TakenNames(ALL, ["*.xml", *TEMPORARY_NAMES]), None),
        (TakenNames(["a?"]), TakenNames(["a??"]), None),
        (TakenNames(["[a-c]*"]), TakenNames(["[!a-c]*"]), None),
        (TakenNames(["[a-c]*"]), TakenNames(["[c-d]*", "x"]), b"c"),
        (TakenNames([".a"]), TakenNames([".a"]), None),
        (TakenNames(["*[]"]), TakenNames(["a*"]), b"a[]"),
        (TakenNames(["ä*"]), TakenNames(["?\udca4*"]), "ä".encode()),
        (TakenNames(["*.tmp"], TEMPORARY_NAMES), TakenNames(ALL, ()), None),
        (TakenNames([]), TakenNames(ALL), None),
        (TakenNames(ALL), TakenNames(ALL), b"a"),
    ],
)
def test_a_name_for_both_is_found_if_there_is_one(one: TakenNames, other: TakenNames, common: bytes | None) -> None:
    assert common_name(one, other) == common
    assert (common_name(other, one) is None) is (common is None)


def test_too_many_patterns_are_given_up_soon() -> None:
    begun = time.process_time()
    with pytest.raises(TooManyError):
        common_name(TakenNames(["*a" + "?" * 30]), TakenNames(["*b" + "?" * 31 + "c"]))
    assert time.process_time() - begun < 5


PATTERNS = st.lists(st.text("ab.*?[]!-", min_size=1, max_size=5), max_size=2)
NAMES = ["".join(name) for length in (1, 2, 3) for name in itertools.product("ab.-[]", repeat=length)]


@given(PATTERNS, PATTERNS, PATTERNS, PATTERNS)
def test_the_search_agrees_with_fnmatch(
    match: list[str], ignore: list[str], other: list[str], ignored: list[str]
) -> None:
    one, two = TakenNames(match, ignore), TakenNames(other, ignored)
    found = common_name(one, two)
    if found is None:
        assert not [name for name in NAMES if takes(one, name) and takes(two, name)]
    else:
        name = found.decode("latin-1")
        assert takes(one, name)
        assert takes(two, name)
