"""Sizes, modes and keys for any input; and no document, however odd, raises anything but ConfigError."""

from __future__ import annotations

import json
import string

from hypothesis import given
from hypothesis import strategies as st

from nsbridge.config import values
from nsbridge.config.errors import ConfigError
from nsbridge.config.load import parse
from nsbridge.config.problems import InvalidValue
from nsbridge.config.schema import Config

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.integers()),
    st.dictionaries(st.text(), st.none()),
)


@given(st.integers(1, 10**9), st.sampled_from(sorted(UNITS)))
def test_size_with_a_unit_is_their_product(number: int, unit: str) -> None:
    assert values.size(f"{number}{unit}") == number * UNITS[unit]


@given(st.integers())
def test_size_is_itself_or_refused_as_out_of_range(number: int) -> None:
    try:
        assert values.size(number) == number
    except InvalidValue:
        assert not 1 <= number < 1 << 63


@given(st.integers(0, 0o777))
def test_mode_is_read_back_from_its_octal_digits(bits: int) -> None:
    assert values.mode(f"{bits:03o}") == bits
    assert values.mode(f"{bits:04o}") == bits


@given(st.integers())
def test_key_is_itself_or_refused_as_out_of_range(number: int) -> None:
    try:
        assert values.queue_key(number) == number
    except InvalidValue:
        assert not 1 <= number < 1 << 32


READERS = (values.size, values.mode, values.queue_key, values.path, values.socket_path, values.container, values.user)


@given(st.sampled_from(READERS), ANYTHING)
def test_reader_gives_a_value_or_refuses_whatever_it_is_given(reader: values.Reader[object], value: object) -> None:
    try:
        assert reader(value) is not None
    except InvalidValue:
        pass  # any other exception is what this looks for


def read(text: str) -> None:
    try:
        assert isinstance(parse(text, "f.toml"), Config)
        return
    except ConfigError as error:
        problems = error.problems
    assert problems
    for problem in problems:
        assert problem.startswith("f.toml: ")
        assert problem.isprintable()
        assert "; " in problem


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    read(text)


@given(st.text(alphabet="[]{}=.,\"'\n #route0x-_\\\ud800"))
def test_any_text_of_what_toml_is_made_of_is_read_or_refused(text: str) -> None:
    read(text)


# Documents that are close to right: real keys, at real places, with values that may be of any kind.
WORDS = """
    daemon route state_dir control log path mode group file level delivery window messages bytes agent web legacy
    container user spool queue out in done key type proj create max_bytes max_message typ conatiner .x all
"""
KEYS = st.sampled_from(WORDS.split())
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.sampled_from(["/a", "/b/", "docker:web", "host", "ns:/x/ipc", "0660", "4MB", "exactly-once", "1:1", "x"]),
)
TREES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(KEYS, inner, max_size=4))
)


def toml(value: object) -> str:
    """Return inline TOML: JSON's strings, numbers and arrays are TOML's too, but for a DEL, which needs an escape."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_any_tree_of_tables_is_read_or_refused(tree: dict[str, object]) -> None:
    read("".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in tree.items()))


ENDS = st.fixed_dictionaries({}, optional={"key": st.integers(0, 3), "type": st.integers(-3, 3)})
ENDPOINTS = st.one_of(
    st.builds(
        lambda ends: {"queue": ends},
        st.fixed_dictionaries({}, optional={"out": ENDS, "in": ENDS, "mode": TREES, "oout": TREES}),
    ),
    st.builds(
        lambda kind, ends: {kind: ends},
        st.sampled_from(["spool", "file"]),
        st.dictionaries(st.sampled_from(["out", "in", "done", "mode"]), st.sampled_from(["/a", "/b", "/a/", "x"])),
    ),
)
AGENTS = st.builds(
    lambda container, endpoint: {"container": container, **endpoint},
    st.sampled_from(["docker:aa", "docker:bb", "host", "ns:/x/mnt", "x"]),
    ENDPOINTS,
)
ROUTES = st.dictionaries(
    st.sampled_from(string.ascii_lowercase[:3]),
    st.fixed_dictionaries({"agent": st.dictionaries(st.sampled_from(["x", "y", "z"]), AGENTS, min_size=1)}),
    max_size=3,
)


@given(ROUTES)
def test_any_routes_are_read_or_refused(routes: dict[str, object]) -> None:
    read(f"route = {toml(routes)}\n")
