"""The control socket as callers of every kind meet it: real sockets, real ids, the real loop."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from nsbridge.agents.loop import Loop
from nsbridge.config.errors import ConfigError, NotPermittedError, NsbridgeError
from nsbridge.config.schema import ControlConfig
from nsbridge.supervisor import control
from nsbridge.supervisor.client import Client
from nsbridge.supervisor.control import ControlServer
from tests.control_fake import HEALTHY, FakeApi, Served, Wire

GROUP, READ_GROUP, OTHER = 51001, 51002, 51003
STRANGER = 51000


# -- requests and answers


def test_a_request_gets_the_answer_with_its_own_id() -> None:
    with Served() as served, Wire(served) as wire:
        wire.request("version", request_id=7)
        wire.request("status", request_id="eight")
        assert wire.answer() == {"id": 7, "result": {"version": "0.1.0", "pid": 1}}
        assert wire.answer() == {"id": "eight", "result": HEALTHY}


def test_an_answer_may_come_later_than_that_to_the_next_request() -> None:
    with Served() as served, Wire(served) as wire:
        wire.request("later", request_id=1)
        wire.request("version", request_id=2)
        assert wire.answer()["id"] == 2
        served.api.answers[0].result("done")
        assert wire.answer() == {"id": 1, "result": "done"}


def test_an_error_has_the_exit_code_and_the_connection_goes_on() -> None:
    with Served() as served, Wire(served) as wire:
        error = wire.ask("status", names=["nobody"])["error"]
        assert error == {"code": 5, "message": "no route or agent is called ['nobody']"}
        assert wire.ask("version")["result"]


def test_a_stream_sends_items_until_its_result() -> None:
    with Served() as served, Wire(served) as wire:
        served.api.records = [{"message": "one"}, {"message": "two"}]
        wire.request("tail")
        assert [wire.answer() for _ in range(3)] == [
            {"id": 1, "item": {"message": "one"}},
            {"id": 1, "item": {"message": "two"}},
            {"id": 1, "result": {}},
        ]


def test_a_bug_behind_the_socket_is_an_answer_and_a_notice_and_not_the_end() -> None:
    with Served() as served, Wire(served) as wire:
        assert "a bug" in wire.ask("bug")["error"]["message"]
        assert "TypeError: what nobody thought of at" in served.notices[0]
        assert wire.ask("version")["result"]


def test_whoever_only_shuts_its_writing_side_still_gets_the_answer() -> None:
    with Served() as served, Wire(served) as wire:
        wire.request("later")
        wire.socket.shutdown(socket.SHUT_WR)
        served.pump(lambda: served.api.answers)
        for _ in range(5):
            served.loop.run_once(0.01)
        served.api.answers[0].result("patience")
        assert wire.answer()["result"] == "patience"
        assert wire.is_closed()


def test_a_half_closed_connection_does_not_make_the_loop_spin() -> None:
    with Served() as served, Wire(served) as wire:
        wire.request("later")
        wire.socket.shutdown(socket.SHUT_WR)
        served.pump(lambda: served.api.answers)
        assert _rounds(served, 0.3) < 20


def test_a_request_is_done_although_its_caller_has_already_gone() -> None:
    with Served() as served:
        with Wire(served) as wire:
            wire.request("shutdown")
        served.pump(lambda: served.api.calls)
        assert served.api.calls == [("shutdown", {})]


def test_a_stream_learns_that_its_caller_has_gone() -> None:
    with Served() as served:
        gone: list[str] = []
        with Wire(served) as wire:
            wire.request("later")
            served.pump(lambda: served.api.answers)
            served.api.answers[0].on_close(lambda: gone.append("first"))
        served.pump(lambda: gone)
        answer = served.api.answers[0]
        assert not answer.is_open
        answer.item("nobody reads this")
        answer.result("nor this")
        answer.on_close(lambda: gone.append("second"))
        assert gone == ["first", "second"]


def test_what_has_been_answered_is_not_told_that_its_caller_has_gone() -> None:
    with Served() as served:
        gone: list[str] = []
        with Wire(served) as wire:
            wire.request("later")
            served.pump(lambda: served.api.answers)
            served.api.answers[0].on_close(lambda: gone.append("never"))
            served.api.answers[0].result("done")
            assert wire.answer()["result"] == "done"
        with Wire(served) as other:
            other.ask("version")
        assert gone == []


# -- callers that send what they should not, or do not read


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n",
        b"hello\n",
        b"[1]\n",
        b'{"id": 1}\n',
        b'{"method": "status"}\n',
        b'{"id": 1, "method": 2}\n',
        b'{"id": 1, "method": "status", "params": []}\n',
        b'{"id": [1], "method": "status"}\n',
        b'{"id": 1, "method": "\xff\xfe"}\n',
        b"[" * 60_000 + b"\n",
        b"9" * 60_000 + b"\n",
        b"x" * (control.MAX_REQUEST + 1) + b"\n",
        b"x" * (3 * control.MAX_REQUEST),
    ],
    ids=lambda garbage: garbage[:24].decode("latin-1").strip() + f"-{len(garbage)}",
)
def test_garbage_gets_one_error_and_is_hung_up_on(garbage: bytes) -> None:
    with Served() as served, Wire(served) as wire, Wire(served) as other:
        try:
            wire.send(garbage + b'{"id": 1, "method": "version"}\n')
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was hung up on before it had said it all
        answer = wire.answer()
        assert answer["id"] is None
        assert answer["error"]["code"] == 2
        assert wire.is_closed()
        assert served.api.calls == []
        assert other.ask("version")["result"]


def test_a_request_of_exactly_the_longest_length_is_answered() -> None:
    with Served() as served, Wire(served) as wire:
        request = b'{"id": 1, "method": "version"'
        wire.send(request + b" " * (control.MAX_REQUEST - len(request) - 1) + b"}\n")
        assert wire.answer()["result"]


def test_who_never_reads_answers_loses_its_connection_and_nobody_else_does() -> None:
    with Served() as served, Wire(served) as wire, Wire(served) as other:
        served.api.status = {"filler": "x" * (1 << 20)}
        for _ in range(8):
            wire.request("status")
        served.pump(lambda: _connections(served) == 1)
        assert other.ask("version")["result"]


def test_who_never_reads_a_stream_loses_its_connection_at_a_mebibyte() -> None:
    with Served() as served, Wire(served) as wire:
        wire.request("later")
        served.pump(lambda: served.api.answers)
        sent = 0
        while served.api.answers[0].is_open:
            served.api.answers[0].item("x" * 10_000)
            sent += 10_000
        assert control.MAX_QUEUED_STREAM <= sent < 2 * control.MAX_QUEUED_STREAM
        assert _connections(served) == 0


def test_an_answer_larger_than_the_socket_s_buffer_arrives_whole() -> None:
    with Served() as served, Wire(served) as wire:
        served.api.status = {"filler": "x" * 3_000_000}
        assert wire.ask("status")["result"] == served.api.status


def test_too_many_requests_under_way_end_the_connection() -> None:
    with Served() as served, Wire(served) as wire:
        for number in range(control.MAX_UNDER_WAY + 1):
            wire.request("later", request_id=number)
        assert "not answered yet" in wire.answer()["error"]["message"]
        assert wire.is_closed()


def test_others_cannot_take_the_places_kept_for_root() -> None:
    def crowd() -> str:
        os.setegid(GROUP)
        os.seteuid(STRANGER)  # what the kernel notes at connect
        room = control.MAX_CLIENTS - control.KEPT_FOR_ROOT
        held = [socket.socket(socket.AF_UNIX) for _ in range(room + 1)]
        for connection in held:
            connection.connect(served.path)
        refused = json.loads(held.pop().recv(4096))["error"]["message"]
        os.seteuid(0)
        root = _called(served.path, "version")
        held[0].sendall(b'{"id": 1, "method": "version"}\n')
        return f"{root}, {json.loads(held[0].recv(4096))['result']['version']}, {refused}"

    with Served(group=str(GROUP)) as served:
        answer = served.as_user(0, 0, [], crowd)
        assert answer == "yes, 0.1.0, nsbridged already serves 240 callers; try again later"


def test_without_descriptors_accepting_pauses_and_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ACCEPT_PAUSE", 0.5)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Served() as served, Wire(served) as wire:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        fill = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]  # no holes below the limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            fill += _open_all_that_is_left()
            assert _rounds(served, 0.3) < 10
            assert len(served.notices) == 1
            assert "Too many open files" in served.notices[0]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in fill:
                os.close(fd)
        assert wire.ask("version")["result"]


def _open_all_that_is_left() -> list[int]:
    opened = []
    try:
        while True:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return opened


# -- who may do what


def _called(path: str, *methods: str) -> str:
    answers = []
    for method in methods:
        try:
            with Client(path) as client:
                client.call(method)
            answers.append("yes")
        except NsbridgeError as error:
            answers.append(str(error.exit_code))
    return " ".join(answers)


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
        assert served.as_user(uid, gid, groups, lambda: _called(served.path, "status", "shutdown")) == expected


@pytest.mark.parametrize("method", ["status", "tail", "inspect", "version"])
def test_the_read_group_may_look(method: str) -> None:
    with Served(group=str(GROUP), read_group=str(READ_GROUP)) as served:
        assert served.as_user(STRANGER, READ_GROUP, [], lambda: _called(served.path, method)) == "yes"


@pytest.mark.parametrize("method", ["start", "stop", "restart", "reload", "shutdown", "made-up"])
def test_the_read_group_may_nothing_but_look(method: str) -> None:
    with Served(group=str(GROUP), read_group=str(READ_GROUP)) as served:
        assert served.as_user(STRANGER, READ_GROUP, [], lambda: _called(served.path, method)) == "77"
        assert served.api.calls == []


def test_a_refusal_says_who_was_refused_what_and_who_may() -> None:
    def told() -> str:
        try:
            with Client(served.path) as client:
                client.call("stop")
        except NotPermittedError as error:
            return str(error)
        return "nothing"

    with Served(group=str(GROUP), read_group=str(READ_GROUP)) as served:
        assert served.as_user(STRANGER, READ_GROUP, [], told) == (
            f"uid {STRANGER} is not permitted to stop: only root and members of group {GROUP} may control, "
            f"members of group {READ_GROUP} may look"
        )


def test_strangers_do_not_fill_the_log() -> None:
    with Served(group=str(GROUP), mode=0o666) as served:
        for _ in range(3):
            served.as_user(STRANGER, OTHER, [], lambda: _called(served.path, "status"))
        assert served.notices == [f"refused uid {STRANGER} on the control socket: it is in neither of its groups"]


def test_the_daemon_s_own_user_may_everything_although_it_is_not_root() -> None:
    def serve_and_call() -> str:
        with Served(group=str(OTHER), read_group=str(OTHER), mode=0o600) as own, Wire(own) as wire:
            return " ".join(next(iter(wire.ask(method).keys() - {"id"})) for method in ("status", "shutdown"))

    with Served() as served:
        assert served.as_user(STRANGER, OTHER, [], serve_and_call) == "result result"


# -- the socket's file


def test_the_socket_has_its_group_and_mode_and_is_gone_after_close() -> None:
    with Served(group="daemon", mode=0o660) as served:
        found = os.lstat(served.path)
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert (found.st_uid, found.st_gid) == (0, _gid("daemon"))
        assert os.listdir(served.directory) == ["control.sock"]
        served.server.close()
        assert os.listdir(served.directory) == []


def _gid(name: str) -> int:
    lines = Path("/etc/group").read_text().splitlines()
    return next(int(line.split(":")[2]) for line in lines if line.startswith(name + ":"))


def test_the_socket_never_exists_under_its_name_before_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server, loop = _server(path)
    with INotify() as inotify:
        inotify.add_watch(str(tmp_path), flags.CREATE | flags.MOVED_TO | flags.ATTRIB)
        server.open()
        happened = [(event.name, flags.from_mask(event.mask)) for event in inotify.read(timeout=0)]
    server.close()
    loop.close()
    assert [masks for name, masks in happened if name == path.name] == [[flags.MOVED_TO]]


def _server(path: Path, **config: str) -> tuple[ControlServer, Loop]:
    loop = Loop()
    return ControlServer(loop, ControlConfig(path=str(path), **config), FakeApi()), loop  # type: ignore[arg-type]


def _refused(path: Path, **config: str) -> str:
    server, loop = _server(path, **config)
    try:
        with pytest.raises(NsbridgeError) as refusal:
            server.open()
    finally:
        server.close()
        loop.close()
    assert isinstance(refusal.value, ConfigError) or "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    server, loop = _server(path)
    server.open()
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
    server.close()
    loop.close()


def test_a_live_socket_is_never_stolen() -> None:
    with Served() as served:
        assert "another daemon listens there" in _refused(Path(served.path))
        with Wire(served) as wire:
            assert wire.ask("version")["result"]
        assert os.listdir(served.directory) == ["control.sock"]


def test_a_daemon_too_busy_to_accept_is_not_taken_for_dead(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))  # fills the backlog
        assert "another daemon listens there" in _refused(path)


def test_what_is_not_a_socket_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    assert "is not a socket" in _refused(path)
    assert path.read_text() == "precious"


def test_close_leaves_the_socket_of_whoever_came_after(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server, loop = _server(path)
    server.open()
    path.unlink()
    path.write_text("somebody else's")
    server.close()
    loop.close()
    assert path.read_text() == "somebody else's"


def test_missing_directories_are_made_for_everybody_to_enter_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "run" / "nsbridge" / "control.sock"
    before = os.umask(0o077)
    try:
        server, loop = _server(path)
        server.open()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(directory.stat().st_mode) for directory in (path.parent, path.parent.parent)]
    server.close()
    loop.close()
    assert modes == [0o755, 0o755]


@pytest.mark.parametrize(("owner", "mode"), [(STRANGER, 0o755), (0, 0o775), (0, 0o757)])
def test_a_directory_that_others_can_change_is_refused(tmp_path: Path, owner: int, mode: int) -> None:
    tmp_path.chmod(mode)
    os.chown(tmp_path, owner, 0)
    assert "can be changed by others than root" in _refused(tmp_path / "control.sock")


def test_a_path_too_long_for_a_socket_says_how_long_it_may_be(tmp_path: Path) -> None:
    assert "at most 107 bytes" in _refused(tmp_path / ("x" * 108))


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in _refused(tmp_path / "file" / "control.sock")


def test_groups_that_do_not_exist_are_both_named(tmp_path: Path) -> None:
    problems = _refused(tmp_path / "control.sock", group="nobodys", read_group="noones").splitlines()
    assert [line.split(":")[0] for line in problems] == ["daemon.control.group", "daemon.control.read_group"]
    assert "groupadd nobodys" in problems[0]


def test_a_minimal_system_without_the_default_groups_will_do(tmp_path: Path) -> None:
    program = """
import sys
from nsbridge.agents.loop import Loop
from nsbridge.config.schema import ControlConfig
from nsbridge.supervisor.control import ControlServer
server = ControlServer(Loop(), ControlConfig(path=sys.argv[1]), None)
server.open(); server.close(); print("served")
"""
    shell = 'mount --bind /dev/null /etc/group && exec "$0" "$@"'
    command = ["unshare", "--mount", "sh", "-c", shell, sys.executable, "-c", program, str(tmp_path / "control.sock")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "served\n"


# -- helpers


def _connections(served: Served) -> int:
    return len(served.server._connections)


def _rounds(served: Served, seconds: float) -> int:
    """How often the loop wakes up in that time, with nothing to do."""
    end, rounds = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        served.loop.run_once(left)
        rounds += 1
    return rounds


def test_the_protocol_is_one_line_of_ascii_json_an_answer() -> None:
    with Served() as served, Wire(served) as wire:
        served.api.records = [{"message": "ü\n\udc80"}]
        wire.request("tail")
        served.pump(lambda: wire.receive() and wire.received.count(b"\n") == 2)
        assert wire.received.isascii()
        assert json.loads(wire.received.splitlines()[0])["item"]["message"] == "ü\n\udc80"
