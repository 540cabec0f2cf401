"""The agent of `nats` against a hostile server: it lives on, shows why it waits, and takes nothing wrong."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nsbridge.agents.endpoints.nats.config import NatsEndpoint, NatsIn, NatsOut
from nsbridge.agents.endpoints.nats.connection import Login
from nsbridge.agents.endpoints.nats.errors import Unready
from nsbridge.agents.endpoints.nats.guest import GuestLoop
from nsbridge.agents.endpoints.nats.link import Link
from nsbridge.agents.endpoints.nats.sink import NatsSink
from nsbridge.agents.endpoints.nats.source import NatsSource
from nsbridge.agents.journal.opensource import open_source
from nsbridge.agents.journal.sinkjournal import open_sink
from nsbridge.agents.wire import Message, Run
from nsbridge.config.schema import InDoubt, Window
from tests.fake_host import FakeHost

INFO: dict[str, Any] = {"server_id": "x", "version": "2.10.0", "max_payload": 1 << 20, "headers": True, "proto": 1}
Answer = Callable[[str, str, bytes], object]  # what the server sends for a request: JSON, or bytes as they are


class HostileServer:
    """Speaks NATS as far as a test wants it."""

    def __init__(self, info: object, answer: Answer, behind: bytes = b"") -> None:
        self._info = info if isinstance(info, bytes) else b"INFO " + json.dumps(info).encode() + b"\r\n"
        self._answer = answer
        self._behind = behind
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"nats://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.said = b""
        self._clients: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        for sock in (self._listener, *self._clients):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                self.connections += 1
                with suppress(OSError):
                    self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        client.sendall(self._info)
        lines = client.makefile("rb")
        sids: dict[str, str] = {}
        while line := lines.readline():
            self.said += line
            words = line.decode().split()
            if words[0] == "PING":
                client.sendall(b"PONG\r\n" + self._behind)
            elif words[0] == "SUB":
                sids[words[1]] = words[-1]
            elif words[0] in ("PUB", "HPUB"):
                payload = lines.read(int(words[-1]) + 2)[:-2]
                reply = words[2] if len(words) > (3 if words[0] == "PUB" else 4) else ""
                found = self._answer(words[1], reply, payload)
                if found is not None:
                    self._send(client, sids, reply, found)

    def _send(self, client: socket.socket, sids: dict[str, str], reply: str, found: object) -> None:
        sid = next((sid for subject, sid in sids.items() if reply.startswith(subject.rstrip("*"))), "1")
        if isinstance(found, tuple):
            client.sendall(found[0].replace(b"SID", sid.encode()).replace(b"REPLY", reply.encode()))
            return
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        client.sendall(f"MSG {reply} {sid} {len(body)}\r\n".encode() + body + b"\r\n")


STREAM = {"config": {"name": "S"}, "state": {"first_seq": 1, "last_seq": 0}, "created": "2026"}
CONSUMER = {
    "name": "d",
    "stream_name": "S",
    "config": {"ack_policy": "explicit", "filter_subject": "a"},
    "ack_floor": {"stream_seq": 0},
}


def honest(subject: str, _reply: str, _payload: bytes) -> object:
    if "STREAM.INFO" in subject:
        return STREAM
    if "STREAM.NAMES" in subject:
        return {"streams": ["S"]}
    if "CONSUMER.INFO" in subject:
        return CONSUMER
    if "STREAM.MSG.GET" in subject:
        return {"error": {"err_code": 10037, "description": "no message"}}
    return None


def says(part: str, what: object) -> Answer:
    return lambda subject, reply, payload: what if part in subject else honest(subject, reply, payload)


class NatsHost(FakeHost):
    """Shows what was ever a reason to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []
        self.taken: list[bytes] = []

    def blocked(self, side: str, reason: str) -> None:
        """See AgentApi."""
        super().blocked(side, reason)
        self.reasons.append(reason)

    def room(self) -> tuple[int, int]:
        """See AgentApi."""
        return 100, 1 << 20

    def has_room(self) -> bool:
        """See AgentApi."""
        return True

    def take(self, message: Message, note: bytes = b"") -> int:
        """Keep it in `taken`."""
        self.taken.append(message.body)
        return len(self.taken)

    def handed(self, run: Run) -> None:
        """Keep them in `taken`."""
        self.taken += run.bodies

    def flush(self) -> None:
        """See AgentApi."""

    def sink_ready(self) -> None:
        """See AgentApi."""


@contextmanager
def agent(path: Path, url: str, end: str, login: Login | None = None) -> Iterator[tuple[NatsHost, Any]]:
    """Run one side of an agent."""
    port = int(url.rpartition(":")[2])
    address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
    host, guest = NatsHost(), GuestLoop({f"127.0.0.1:{port}": [address]})
    link = Link(host, guest, [url], login or Login("nsbridge r:a"))
    side: NatsSource | NatsSink
    if end == "out":
        journal = open_source(str(path / "a.out"), 103, 1 << 20)
        config = NatsEndpoint(out=NatsOut("S", "a", "d"), servers=(url,))
        side = NatsSource(host, config, journal, link, Window())
    else:
        sink_journal = open_sink(str(path / "a.in"), host.said.append)
        config = NatsEndpoint(in_=NatsIn("a"), servers=(url,))
        side = NatsSink(host, config, sink_journal, link, InDoubt.RESEND)
    side.start()
    try:
        yield host, side
    finally:
        guest.drop_transports()
        guest._host, guest._failure = None, None
        tasks = asyncio.all_tasks(guest)
        for task in tasks:
            task.cancel()
        guest.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        guest.close()
        side._journal.close()
        host.close()


LIES: dict[str, tuple[object, Answer, bytes]] = {
    "garbage": (b"\xff\x00garbage\r\n", honest, b""),
    "http": (b"HTTP/1.1 400 Bad Request\r\n\r\n", honest, b""),
    "info_is_a_list": (b"INFO []\r\n", honest, b""),
    "info_is_null": (b"INFO null\r\n", honest, b""),
    "info_nested": (b"INFO " + b"[" * 20000 + b"\r\n", honest, b""),
    "info_without_json": (b"INFO {\r\n", honest, b""),
    "info_endless": (b"INFO " + b"x" * 200_000, honest, b""),
    "payload_is_text": ({**INFO, "max_payload": "much"}, honest, b""),
    "payload_is_negative": ({**INFO, "max_payload": -5}, honest, b""),
    "urls_are_numbers": ({**INFO, "connect_urls": 5}, honest, b""),
    "urls_have_bad_ports": ({**INFO, "connect_urls": ["a:b", "[::1", "x:99999999", "a:4222x", ""]}, honest, b""),
    "later_info_is_garbage": (INFO, honest, b"INFO {]\r\n"),
    "later_info_is_a_list": (INFO, honest, b"INFO []\r\n"),
    "unknown_protocol": (INFO, honest, b"WHAT\r\n"),
    "huge_message": (INFO, honest, b"MSG a 1 99999999999999999999\r\n"),
    "headers_longer_than_the_message": (INFO, honest, b"HMSG a 1 99 5\r\nxxxxx\r\n"),
    "no_json": (INFO, says("INFO", b"{"), b""),
    "not_text": (INFO, says("INFO", b"\xff\xfe"), b""),
    "a_number": (INFO, says("INFO", 5), b""),
    "a_list": (INFO, says("INFO", [1]), b""),
    "nothing": (INFO, says("INFO", {}), b""),
    "nested": (INFO, says("INFO", b"[" * 100_000), b""),
    "a_long_number": (INFO, says("INFO", b'{"config": ' + b"9" * 5000 + b"}"), b""),
    "error_is_text": (INFO, says("INFO", {"error": "no"}), b""),
    "error_code_is_text": (INFO, says("INFO", {"error": {"err_code": "x"}}), b""),
    "stream_of_wrong_types": (INFO, says("STREAM.INFO", {"config": 1, "state": [], "created": {}}), b""),
}
OF_SINK: dict[str, tuple[object, Answer, bytes]] = {
    "names_are_numbers": (INFO, says("STREAM.NAMES", {"streams": 7}), b""),
    "names_are_objects": (INFO, says("STREAM.NAMES", {"streams": [{}]}), b""),
    "state_is_text": (INFO, says("STREAM.INFO", {**STREAM, "state": {"first_seq": "x", "last_seq": 1}}), b""),
    "message_is_no_base64": (INFO, says("MSG.GET", {"message": {"seq": 1, "data": "!", "hdrs": "%%%"}}), b""),
    "message_is_missing": (INFO, says("MSG.GET", {}), b""),
}
OF_SOURCE: dict[str, tuple[object, Answer, bytes]] = {
    "floor_is_text": (INFO, says("CONSUMER.INFO", {**CONSUMER, "ack_floor": {"stream_seq": "x"}}), b""),
    "floor_is_huge": (INFO, says("CONSUMER.INFO", {**CONSUMER, "ack_floor": {"stream_seq": 1 << 80}}), b""),
    "filters_are_numbers": (INFO, says("CONSUMER.INFO", {**CONSUMER, "config": {"filter_subjects": 5}}), b""),
    "sequence_is_huge": (
        INFO,
        says("MSG.NEXT", (b"MSG REPLY SID $JS.ACK.S.d.1." + b"9" * 30 + b".1.1.0 1\r\nx\r\n",)),
        b"",
    ),
    "sequence_is_negative": (INFO, says("MSG.NEXT", (b"MSG REPLY SID $JS.ACK.S.d.1.-5.1.1.0 1\r\nx\r\n",)), b""),
    "sequence_is_text": (INFO, says("MSG.NEXT", (b"MSG REPLY SID $JS.ACK.S.d.1.x.1.1.0 1\r\nx\r\n",)), b""),
    "no_acknowledgement": (INFO, says("MSG.NEXT", (b"MSG REPLY SID 1\r\nx\r\n",)), b""),
    "unasked": (INFO, says("MSG.NEXT", (b"MSG REPLY SID $JS.ACK.S.d.1.0.1.1.0 1\r\nx\r\n" * 5000,)), b""),
    "stream_repeats_itself": (
        INFO,
        lambda subject, reply, payload: (
            {"message": {"seq": 0 if b'"seq": 1,' in payload else 1, "data": ""}}
            if "MSG.GET" in subject
            else says("MSG.NEXT", (b"MSG REPLY SID $JS.ACK.S.d.1.3.1.1.0 1\r\nx\r\n",))(subject, reply, payload)
        ),
        b"",
    ),
    "status_is_odd": (INFO, says("MSG.NEXT", (b"HMSG REPLY SID 16 16\r\nNATS/1.0 999\r\n\r\n\r\n",)), b""),
}


HARMLESS = {"urls_have_bad_ports", "headers_longer_than_the_message", "names_are_objects", "message_is_no_base64"}
WORDS = {"payload_is_text": "max_payload that makes no sense", "no_json": "makes no sense", "nested": "makes no sense"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a server a second."""
    for module in ("connection", "link", "pulls", "sink"):
        for name in ("PATIENCE", "_EXPIRES", "_GRACE"):
            monkeypatch.setattr(f"nsbridge.agents.endpoints.nats.{module}.{name}", 1.0, raising=False)


@pytest.mark.parametrize(
    ("end", "lie"),
    [(end, lie) for end, lies in (("out", {**LIES, **OF_SOURCE}), ("in", {**LIES, **OF_SINK})) for lie in lies],
)
def test_lie_of_a_server_is_a_reason_to_wait(tmp_path: Path, end: str, lie: str) -> None:
    server = HostileServer(*{**LIES, **OF_SINK, **OF_SOURCE}[lie])
    try:
        with agent(tmp_path, server.url, end) as (host, _side):
            is_harmless = end == "in" and lie in HARMLESS
            host.run_until(lambda: len(host.reasons) > 1 and bool(host.reason) is not is_harmless, "it shows a reason")
            assert all(len(reason) < 500 and "\n" not in reason for reason in host.reasons)
            assert host.taken == []
            assert any(WORDS.get(lie, "") in reason for reason in host.reasons[1:])
    finally:
        server.close()


def test_no_credentials_are_sent_without_tls(tmp_path: Path) -> None:
    """A program in the server's place only has to leave `tls_required` out."""
    server = HostileServer({**INFO, "nonce": "x", "auth_required": True}, honest)
    try:
        login = Login("nsbridge r:a", tls=ssl.create_default_context())
        with agent(tmp_path, server.url, "out", login) as (host, _side):
            host.run_until(lambda: any("does not speak TLS" in reason for reason in host.reasons), "it is shown")
        assert b"CONNECT" not in server.said
    finally:
        server.close()


@pytest.mark.parametrize(("end", "words"), [("out", b"PUB $JS.API.CONSUMER.MSG"), ("in", b"PUB $JS.API.STREAM.NAMES")])
def test_side_that_begins_again_leaves_no_subscription(tmp_path: Path, end: str, words: bytes) -> None:
    """A message that is too long makes it begin again every two seconds, perhaps for days."""
    status = (b"HMSG REPLY SID 16 16\r\nNATS/1.0 999\r\n\r\n\r\n",)
    server = HostileServer(INFO, says("MSG.NEXT", status))

    def is_more(before: int) -> bool:
        return server.said.count(words) > before

    try:
        with agent(tmp_path, server.url, end) as (host, side):
            host.run_until(lambda: words in server.said and not host.reason, "it serves")
            while server.said.count(words) <= 3:
                before = server.said.count(words)
                if end == "in":
                    side._break(Unready("try again"))
                host.run_until(functools.partial(is_more, before), "it begins again")
            left = server.said.count(b"\nSUB ") - server.said.count(b"\nUNSUB ")
            assert left <= 2, "that of answers, and its own"
    finally:
        server.close()


def test_confirmation_of_an_unpublished_message_is_refused(tmp_path: Path) -> None:
    def lying(subject: str, reply: str, payload: bytes) -> object:
        if subject != "a":
            return honest(subject, reply, payload)
        other = reply.rpartition(".")[0] + ".999"
        body = b'{"stream": "S", "seq": 1}'
        return (b"MSG %s SID %d\r\n%s\r\n" % (other.encode(), len(body), body),)

    server = HostileServer(INFO, lying)
    try:
        with agent(tmp_path, server.url, "in") as (host, side):
            side._journal.adopt(7, 0)
            host.run_until(lambda: side._is_open, "it is open")
            assert side.put(Run(7, 1, 0, [b"x"])) == 1
            host.run_until(lambda: any("message 999 of 1" in reason for reason in host.reasons), "it is shown")
            assert host.taken == []
            assert side._journal.handed == 0
    finally:
        server.close()


def test_request_may_be_completed_before_its_messages_come(tmp_path: Path) -> None:
    """A server of a cluster sends messages when their delivery is replicated, and the status at once."""
    status = b"HMSG REPLY SID 32 32\r\nNATS/1.0 409 Batch Completed\r\n\r\n\r\n"
    batch = status + b"MSG REPLY SID $JS.ACK.S.d.1.1.1.1.0 1\r\nx\r\n"
    server = HostileServer(INFO, says("MSG.NEXT", (batch,)))
    try:
        with agent(tmp_path, server.url, "out") as (host, _side):
            host.run_until(lambda: host.taken == [b"x"], "it is taken")
        assert b"STREAM.MSG.GET" not in server.said, "from the consumer, not from the stream"
    finally:
        server.close()
