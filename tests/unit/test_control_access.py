"""Permissions of the control socket: real ids, real groups, the mode and the ACL of a real file."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsbridge.config.errors import NotPermittedError
from nsbridge.supervisor.cli.client import ControlClient
from tests import fuzz
from tests.control_fake import Served, Wire, called

GROUP, READ_GROUP, OTHER = 51001, 51002, 51003
STRANGER = 51000


@pytest.mark.parametrize(
    ("uid", "gid", "groups", "mode", "expected"),
    [
        pytest.param(0, 0, [], 0o660, "yes yes", id="root"),
        pytest.param(0, OTHER, [], 0o600, "yes yes", id="root-by-uid-alone"),
        pytest.param(STRANGER, GROUP, [], 0o660, "yes yes", id="group-as-its-main-group"),
        pytest.param(STRANGER, OTHER, [51009, GROUP], 0o660, "yes yes", id="group-as-a-supplementary-group"),
        pytest.param(STRANGER, OTHER, [*range(60000, 60250), GROUP], 0o660, "yes yes", id="group-as-one-of-many"),
        pytest.param(STRANGER, READ_GROUP, [], 0o660, "yes 77", id="read-group-as-its-main-group"),
        pytest.param(STRANGER, OTHER, [READ_GROUP], 0o660, "yes 77", id="read-group-as-a-supplementary-group"),
        pytest.param(STRANGER, OTHER, [READ_GROUP, GROUP], 0o660, "yes yes", id="both-groups"),
        pytest.param(STRANGER, OTHER, [], 0o660, "77 77", id="stranger-stopped-by-the-file"),
        pytest.param(STRANGER, OTHER, [], 0o666, "77 77", id="stranger-stopped-by-the-server"),
        pytest.param(STRANGER, READ_GROUP, [], 0o666, "yes 77", id="read-group-when-all-may-connect"),
        pytest.param(STRANGER, GROUP, [], 0o600, "77 77", id="group-kept-out-by-the-mode"),
        pytest.param(STRANGER, READ_GROUP, [], 0o600, "77 77", id="read-group-kept-out-by-the-mode"),
    ],
)
def test_a_caller_may_do_what_its_groups_allow(uid: int, gid: int, groups: list[int], mode: int, expected: str) -> None:
    with Served(group=str(GROUP), read_group=str(READ_GROUP), mode=mode) as served:
        assert served.as_user(uid, gid, groups, lambda: called(served.path, "status", "shutdown")) == expected


@pytest.mark.parametrize("method", ["status", "tail", "inspect", "version"])
def test_the_read_group_may_look(method: str) -> None:
    with Served(group=str(GROUP), read_group=str(READ_GROUP)) as served:
        assert served.as_user(STRANGER, READ_GROUP, [], lambda: called(served.path, method)) == "yes"


def test_the_read_group_may_call_only_methods_that_look(tmp_path: Path) -> None:
    """A new one is refused until somebody has thought about it."""
    looking = {"status", "overview", "tail", "events", "inspect", "top", "version", "dead_list"}
    with fuzz.supervisor_at(tmp_path) as supervisor:
        methods = [*fuzz.api_of(supervisor)._methods]
    with Served(group=str(GROUP), read_group=str(READ_GROUP)) as served:
        answers = served.as_user(STRANGER, READ_GROUP, [], lambda: called(served.path, *methods)).split()
        refused = {method for method, answer in zip(methods, answers, strict=True) if answer == "77"}
        assert refused == set(methods) - looking
        assert {method for method, _ in served.api.calls} <= looking


@pytest.mark.parametrize(
    "method", ["start", "stop", "restart", "reload", "shutdown", "dead_show", "dead_drop", "made-up"]
)
def test_the_read_group_may_nothing_but_look(method: str) -> None:
    with Served(group=str(GROUP), read_group=str(READ_GROUP)) as served:
        assert served.as_user(STRANGER, READ_GROUP, [], lambda: called(served.path, method)) == "77"
        assert served.api.calls == []


def test_the_log_names_who_asks_for_a_change_and_who_is_refused() -> None:
    def ask() -> str:
        with ControlClient(served.path) as client:
            try:
                client.call("dead_drop", {"ids": ["orders:legacy/1"]})
            except NotPermittedError:
                return "77"
        return "0"

    with Served(group=str(GROUP), read_group=str(READ_GROUP)) as served:
        served.api.results |= {"dead_drop": {}}
        assert served.as_user(STRANGER, GROUP, [], ask) == "0"
        assert served.audit == [f"uid {STRANGER} asks to dead drop ['orders:legacy/1']"]
        assert served.as_user(STRANGER, READ_GROUP, [], ask) == "77"
        assert served.notices[-1].startswith(f"uid {STRANGER} is not permitted to dead drop: only root and members")
        assert served.as_user(STRANGER, READ_GROUP, [], lambda: called(served.path, "status")) == "yes"
        assert len(served.audit) == 1, "a caller who only looks is not logged"


def test_a_refusal_says_who_was_refused_what_and_who_may() -> None:
    def connected() -> str:
        try:
            with ControlClient(served.path) as client:
                client.call("stop")
        except NotPermittedError as error:
            return str(error)
        return "nothing"

    with Served(group=str(GROUP), read_group=str(READ_GROUP)) as served:
        assert served.as_user(STRANGER, READ_GROUP, [], connected) == (
            f"uid {STRANGER} is not permitted to stop: only root and members of group {GROUP} may control, "
            f"members of group {READ_GROUP} may look"
        )


def test_strangers_do_not_fill_the_log() -> None:
    with Served(group=str(GROUP), mode=0o666) as served:
        for _ in range(3):
            served.as_user(STRANGER, OTHER, [], lambda: called(served.path, "status"))
        assert served.notices == [f"refused uid {STRANGER} on the control socket: it is in neither of its groups"]


def test_the_daemon_s_own_user_may_do_everything_without_root() -> None:
    def serve_and_call() -> str:
        with Served(group=str(OTHER), read_group=str(OTHER), mode=0o600) as own, Wire(own) as wire:
            return " ".join(next(iter(wire.ask(method).keys() - {"id"})) for method in ("status", "shutdown"))

    with Served() as served:
        assert served.as_user(STRANGER, OTHER, [], serve_and_call) == "result result"
