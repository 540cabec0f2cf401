"""`nsbridge containers`: rows of every registered engine, each process once, and engines that cannot be asked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from nsbridge.config import containerkind
from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import Found, NotPermitted
from nsbridge.supervisor.containers.listing import list_containers
from nsbridge.supervisor.containers.rows import Listed, row, row_without_process


class Scripted(Engine):
    """An engine that lists what the test says."""

    def __init__(self, prefix: str, rows: Sequence[Listed] = (), fault: str = "", later: Sequence[Listed] = ()) -> None:
        self.kind = ContainerKind(prefix, re.compile("[a-z]+"), "small letters")  # type: ignore[misc]  # one for each
        self._rows, self._fault, self._later = rows, fault, later
        self.saw: list[str] = []

    def locate(self, name: str) -> Found:
        raise AssertionError(name)

    def listed(self) -> Iterable[Listed]:
        yield from self._rows
        if self._fault:
            raise NotPermitted(self._fault)

    def leftovers(self, rows: Sequence[Listed]) -> Iterable[Listed]:
        self.saw = [each.name for each in rows]
        return self._later


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Unregister every engine of this host during the test, and register all again afterwards."""
    with _registered():
        yield


@contextmanager
def _registered() -> Iterator[None]:
    kinds, known = dict(containerkind.known()), dict(engines._ENGINES)
    containerkind.known().clear()
    engines._ENGINES.clear()
    yield
    containerkind._KINDS.clear()
    containerkind._KINDS.update(kinds)
    engines._ENGINES.clear()
    engines._ENGINES.update(known)


def test_process_is_listed_once_under_its_first_name() -> None:
    mine = os.getpid()
    engines.register(
        Scripted("upper", [row("upper:web", mine, "running"), row_without_process("upper:b", "exited", "")])
    )
    engines.register(Scripted("lower", [row("lower:0d38", mine, "running"), row("lower:c", 0, "stopped")]))
    rows = list_containers()
    assert [each.names for each in rows] == [("upper:web", "lower:0d38"), ("upper:b",), ("lower:c",)]


def test_engine_may_have_several_names_for_a_process() -> None:
    mine = os.getpid()
    engines.register(Scripted("one", [row(f"one:{name}", mine, "running") for name in "abc"]))
    assert [each.names for each in list_containers()] == [("one:a", "one:b", "one:c")]


def test_engine_that_cannot_be_asked_is_a_row() -> None:
    engines.register(Scripted("shut", fault="/run/shut cannot be listed: Permission denied"))
    engines.register(Scripted("open", [row("open:a", 0, "stopped")]))
    rows = list_containers()
    assert [(each.name, each.state) for each in rows] == [("shut:*", "unknown"), ("open:a", "stopped")]
    assert rows[0].note == "/run/shut cannot be listed: Permission denied"


def test_leftovers_come_last_wherever_their_engine_stands() -> None:
    first = Scripted("first", later=[row("first:9", 0, "running")])
    engines.register(first)
    engines.register(Scripted("last", [row("last:a", 0, "stopped")]))
    assert [each.name for each in list_containers()] == ["last:a", "first:9"]
    assert first.saw == ["last:a"]


def test_row_of_a_process_has_its_namespaces() -> None:
    made = row("x:a", os.getpid(), "running")
    assert made.ipc_inode == os.stat("/proc/self/ns/ipc").st_ino
    assert (made.mnt_is_own, made.ipc_is_own, made.pid) == (True, True, os.getpid())


def test_row_of_a_process_that_has_ended_is_in_doubt() -> None:
    made = row("x:a", 4194305, "running")
    assert (made.pid, made.state, made.note) == (0, "unknown", "there is no process 4194305")


def test_row_escapes_what_an_engine_says() -> None:
    made = row("x:\x1b[2J", 0, "\x07dead")
    assert (made.name, made.state) == (r"x:\x1b[2J", r"\x07dead")
