"""The control socket as callers of every kind meet it: real sockets, real ids, the real loop."""

from __future__ import annotations

import json
import os
import resource
import socket
import time

import pytest

from nsbridge.supervisor.control import connection, request
from nsbridge.supervisor.control import server as control
from nsbridge.supervisor.control.answer import MAX_QUEUED_STREAM
from tests.control_fake import HEALTHY, Served, Wire, called

GROUP, READERS, STRANGER = 51001, 51002, 51000


# -- requests and answers


def test_a_request_gets_the_answer_with_its_own_id() -> None:
    with Served() as served, Wire(served) as wire:
        wire.request("version", request_id=7)
        wire.request("status", request_id="eight")
        assert wire.answer() == {"id": 7, "result": {"version": "0.2.0", "pid": 1}}
        assert wire.answer() == {"id": "eight", "result": HEALTHY}


def test_an_answer_may_come_later_than_that_to_the_next_request() -> None:
    with Served() as served, Wire(served) as wire:
        wire.request("later", request_id=1)
        wire.request("version", request_id=2)
        assert wire.answer()["id"] == 2
        served.api.answers[0].result("done")
        assert wire.answer() == {"id": 1, "result": "done"}


def test_an_error_has_the_exit_code_and_the_connection_stays() -> None:
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


def test_a_bug_behind_the_socket_is_an_answer_and_a_notice() -> None:
    with Served() as served, Wire(served) as wire:
        assert "a bug" in wire.ask("bug")["error"]["message"]
        assert "TypeError: what nobody thought of at" in served.notices[0]
        assert wire.ask("version")["result"]


def test_a_half_closed_caller_still_gets_the_answer() -> None:
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


def test_an_answered_request_does_not_hear_that_its_caller_left() -> None:
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
        b"x" * (request.MAX_REQUEST + 1) + b"\n",
        b"x" * (3 * request.MAX_REQUEST),
    ],
    ids=lambda garbage: garbage[:24].decode("latin-1").strip() + f"-{len(garbage)}",
)
def test_garbage_gets_one_error_and_is_hung_up_on(garbage: bytes) -> None:
    with Served() as served, Wire(served) as wire, Wire(served) as other:
        try:
            wire.send(garbage + b'{"id": 1, "method": "version"}\n')
        except (BrokenPipeError, ConnectionResetError):
            pass  # the connection was closed before all was sent
        answer = wire.answer()
        assert answer["id"] is None
        assert answer["error"]["code"] == 2
        assert wire.is_closed()
        assert served.api.calls == []
        assert other.ask("version")["result"]


def test_a_request_of_exactly_the_longest_length_is_answered() -> None:
    with Served() as served, Wire(served) as wire:
        line = b'{"id": 1, "method": "version"'
        wire.send(line + b" " * (request.MAX_REQUEST - len(line) - 1) + b"}\n")
        assert wire.answer()["result"]


def test_who_does_not_read_answers_is_not_served_on() -> None:
    """Nothing grows: it costs the daemon one answer. Once it reads, it has them all."""
    with Served() as served, Wire(served) as wire, Wire(served) as other:
        served.api.status = {"filler": "x" * (1 << 20)}
        for _ in range(8):
            wire.request("status")
        served.pump(lambda: served.api.calls)
        for _ in range(20):
            served.loop.run_once(0.01)
            unread = sum(len(caller._queued) for caller in served.server._connections)
            assert unread <= (1 << 20) + connection.MAX_UNREAD
        assert len(served.api.calls) == 1
        assert other.ask("version")["result"]
        assert all(wire.answer()["result"] == served.api.status for _ in range(8))


def test_a_stream_that_nobody_reads_is_cut_at_a_mebibyte() -> None:
    with Served() as served, Wire(served) as wire:
        wire.request("later")
        served.pump(lambda: served.api.answers)
        sent = 0
        while served.api.answers[0].is_open:
            served.api.answers[0].item("x" * 10_000)
            sent += 10_000
        assert MAX_QUEUED_STREAM <= sent < 2 * MAX_QUEUED_STREAM
        assert _connections(served) == 0


def test_an_answer_larger_than_the_socket_s_buffer_arrives_whole() -> None:
    with Served() as served, Wire(served) as wire:
        served.api.status = {"filler": "x" * 3_000_000}
        assert wire.ask("status")["result"] == served.api.status


def test_too_many_requests_under_way_end_the_connection() -> None:
    with Served() as served, Wire(served) as wire:
        for number in range(connection.MAX_UNDER_WAY + 1):
            wire.request("later", request_id=number)
        assert "not answered yet" in wire.answer()["error"]["message"]
        assert wire.is_closed()


def test_others_cannot_take_the_places_kept_for_root() -> None:
    def crowd() -> str:
        os.setegid(GROUP)
        os.seteuid(STRANGER)  # what the kernel notes at connect
        room = control.MAX_CLIENTS - control.KEPT_FOR_ROOT
        held = [socket.socket(socket.AF_UNIX) for _ in range(room + 1)]
        for end in held:
            end.connect(served.path)
        refused = json.loads(held.pop().recv(4096))["error"]["message"]
        os.seteuid(0)
        root = called(served.path, "version")
        held[0].sendall(b'{"id": 1, "method": "version"}\n')
        return f"{root}, {json.loads(held[0].recv(4096))['result']['version']}, {refused}"

    with Served(group=str(GROUP)) as served:
        answer = served.as_user(0, 0, [], crowd)
        assert answer == "yes, 0.2.0, nsbridged already serves 240 callers; try again later"


def test_readers_cannot_take_the_places_of_controllers() -> None:
    def crowd() -> str:
        os.setegid(READERS)
        os.seteuid(STRANGER)
        room = control.MAX_CLIENTS - control.KEPT_FOR_ROOT - control.KEPT_FOR_CONTROL
        held = [socket.socket(socket.AF_UNIX) for _ in range(room + 1)]
        for end in held:
            end.connect(served.path)
        refused = json.loads(held.pop().recv(4096))["error"]["message"]
        os.seteuid(0)
        os.setegid(GROUP)
        os.seteuid(STRANGER)
        return f"{called(served.path, 'version')}, {refused}"

    with Served(group=str(GROUP), read_group=str(READERS)) as served:
        answer = served.as_user(0, 0, [], crowd)
        assert answer == "yes, nsbridged already serves 224 callers; try again later"


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


# -- helpers


def _connections(served: Served) -> int:
    return len(served.server._connections)


def _rounds(served: Served, seconds: float) -> int:
    """Return how often the loop wakes up in that time, with nothing to do."""
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
