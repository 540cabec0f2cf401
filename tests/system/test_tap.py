"""`nsbridgectl tap` with a real daemon: what it shows, who may, and that no client of it disturbs anything."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from nsbridge.agents.tap import KEPT
from nsbridge.config.errors import NotPermittedError, NsbridgeError
from nsbridge.supervisor.cli.client import ControlClient
from nsbridge.supervisor.control.server import MAX_STREAMS
from nsbridge.supervisor.control.tap import WIPE_AFTER
from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import LIMIT, run, wait_until
from tests.system.test_relay import route
from tests.system.test_rogue_memory import _readable as readable
from tests.system.traffic import Receiver, Sent, put_into_spool, random_messages, send_all, wait_for_files

READER = 54321  # uid and gid of a caller who may only look
CTL = Path(sys.executable).with_name("nsbridgectl")


class Tap:
    """A client that follows a tap; `items` is what came, without the first, which reports that it has begun."""

    def __init__(self, daemon: Nsbridged, **params: object) -> None:
        self.items: list[dict[str, Any]] = []
        self.error: NsbridgeError | None = None
        self.tapped: list[str] = []
        self._client = ControlClient(str(daemon.socket), LIMIT)
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=[params], daemon=True)
        self._thread.start()
        assert self._begun.wait(LIMIT)

    def _follow(self, params: dict[str, object]) -> None:
        try:
            with self._client as client:
                for item in client.stream("tap", params, follow=True):
                    if "tapped" in item:
                        self.tapped = item["tapped"]
                        self._begun.set()
                    else:
                        self.items.append(item)
        except NsbridgeError as error:
            self.error = error
            self._begun.set()

    def bodies(self) -> list[bytes]:
        return [base64.b64decode(item["body"]) for item in self.items if "body" in item]

    def until(self, count: int) -> list[bytes]:
        wait_until(lambda: len(self.bodies()) >= count, f"{count} messages are shown")
        return self.bodies()

    def ends(self) -> bool:
        """Return True once the daemon has ended the answer."""
        self._thread.join(LIMIT)
        return not self._thread.is_alive()


@contextmanager
def echo(tmp_path: Path, make: Factory) -> Iterator[tuple[Nsbridged, Any, Any]]:
    """Run a route between a spool and a queue, both ways."""
    web, legacy = make(), make()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        yield daemon, web, legacy


def test_tap_shows_both_directions_and_changes_nothing(tmp_path: Path, unshare_container: Factory) -> None:
    with echo(tmp_path, unshare_container) as (daemon, web, legacy):
        tap, one = Tap(daemon, name="r"), Tap(daemon, name="r:queue")
        assert tap.tapped == ["r:queue", "r:files"]
        bodies = [b"one", b"", b"\x00\xff" * 10, bytes(KEPT + 1)[:8000]]
        put_into_spool(web.rootfs / "srv/out", bodies)
        with Receiver(legacy, 0x51, len(bodies)) as receiver:
            assert [message.body for message in receiver.messages()] == bodies
        send_all(legacy, 0x52, [Sent(7, b"back")])
        wait_for_files(web.rootfs / "srv/in", 1)
        assert tap.until(5) == [*bodies, b"back"]
        assert one.until(4) == bodies
        first, last = tap.items[0], tap.items[-1]
        assert (first["from"], first["to"], first["seq"], first["bytes"], first["cut"]) == (
            "r:files",
            "r:queue",
            1,
            3,
            False,
        )
        assert (last["from"], last["to"], last["type"]) == ("r:queue", "r:files", 7)
        daemon.wait_delivered("r:files", 4)
        flow = daemon.flow("r:files")
        assert (flow["repeats_dropped"], flow["pending"]) == (0, 0)


def test_a_long_message_is_cut_and_says_so(tmp_path: Path, unshare_container: Factory) -> None:
    web, other = unshare_container(), unshare_container()
    routes = (
        f'[route.r.agent.a]\ncontainer = "{web.spec}"\nspool = {{ out = "/srv/out" }}\n'
        f'[route.r.agent.b]\ncontainer = "{other.spec}"\nspool = {{ in = "/srv/in" }}\n'
    )
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        tap = Tap(daemon, name="r", count=1)
        body = random_messages(KEPT + 1)[0][:1] * (KEPT + 1)
        put_into_spool(web.rootfs / "srv/out", [body])
        assert tap.until(1) == [body[:KEPT]]
        assert (tap.items[0]["bytes"], tap.items[0]["cut"]) == (KEPT + 1, True)
        assert tap.ends()
        assert tap.error is None


def test_the_command_prints_text_json_and_bytes(tmp_path: Path, unshare_container: Factory) -> None:
    with echo(tmp_path, unshare_container) as (daemon, web, _legacy):
        command = [CTL, "-s", str(daemon.socket), "tap", "--count", "2", "r:queue"]
        running = {
            form: subprocess.Popen([*map(str, command), *form.split()], stdout=subprocess.PIPE)
            for form in ("", "--json", "--raw")
        }
        wait_until(lambda: len(children(daemon)) == 3, "three taps run")
        put_into_spool(web.rootfs / "srv/out", [b"a\x1b[2J\n", b"second"])
        printed = {form: process.communicate(timeout=LIMIT)[0] for form, process in running.items()}
        assert [process.returncode for process in running.values()] == [0, 0, 0]
        assert printed["--raw"] == b"a\x1b[2J\nsecond"
        first, second = printed[""].decode().splitlines()
        assert first.endswith(r" r:files → r:queue 1 6 B: a\x1b[2J\n")
        assert second.endswith(" 6 B: second")
        objects = map(json.loads, printed["--json"].splitlines())
        assert [base64.b64decode(item["body"]) for item in objects] == [b"a\x1b[2J\n", b"second"]


def children(daemon: Nsbridged) -> list[int]:
    """Return the supervisor's children that are no agents."""
    agents = {agent["pid"] for agent in daemon.agents().values()}
    found = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text(encoding="ascii").split()
    return [pid for pid in map(int, found) if pid not in agents]


def tries_to_tap(path: str) -> int:
    """Be a member of read_group; return 0 if it may look and may not tap."""
    os.setgroups([])
    os.setresgid(READER, READER, READER)
    os.setresuid(READER, READER, READER)
    with ControlClient(path, LIMIT) as client:
        assert client.call("status")["routes"]
        try:
            next(client.stream("tap", {"name": "r"}))
        except NotPermittedError as error:
            return int("not permitted to tap" not in str(error))
    return 1


def test_who_may_only_look_may_not_tap(engine_base: Path, unshare_container: Factory) -> None:
    """The log of the daemon has who taps."""
    web, legacy = unshare_container(), unshare_container()
    directory = engine_base / "tap"
    directory.mkdir()
    daemon = Nsbridged(directory, route(web.spec, legacy.spec))
    text = daemon.config.read_text(encoding="utf-8")
    daemon.config.write_text(text.replace("control = {", f'control = {{ read_group = "{READER}",'), encoding="utf-8")
    with daemon:
        daemon.wait_for("RUNNING")
        (directory / "state").chmod(0o755)
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(tries_to_tap(str(daemon.socket)))
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        Tap(daemon, name="r")
        assert "uid 0 asks to tap r" in daemon.said()


def test_names_and_counts_that_are_wrong_are_refused(tmp_path: Path, unshare_container: Factory) -> None:
    with echo(tmp_path, unshare_container) as (daemon, _web, _legacy):
        for code, words in ((5, ["none"]), (2, ["r", "--count", "0"]), (2, ["r", "--json", "--raw"]), (2, [])):
            assert run([CTL, "-s", str(daemon.socket), "tap", *words], check=False).returncode == code, words
        for params in (
            {},
            {"name": 5},
            {"name": "r", "count": "x"},
            {"name": "r", "count": -1},
        ):
            tap = Tap(daemon, **params)
            assert tap.error is not None, params


def test_a_client_that_never_reads_harms_nothing(tmp_path: Path, unshare_container: Factory) -> None:
    """Leave all taps but one unread: the daemon answers, all messages arrive, and the one sees or counts them all."""
    with echo(tmp_path, unshare_container) as (daemon, web, legacy):
        deaf = []
        for _ in range(MAX_STREAMS - 1):
            client = ControlClient(str(daemon.socket), LIMIT)
            client._socket.sendall(b'{"id": 1, "method": "tap", "params": {"name": "r"}}\n')
            deaf.append(client)
        wait_until(lambda: len(children(daemon)) == len(deaf), "they are served")
        tap = Tap(daemon, name="r:queue")
        assert Tap(daemon, name="r").error is not None, "one too many"
        bodies = [b"%06d" % number + bytes(2000) for number in range(1500)]
        memory = sum(psutil.Process(pid).memory_info().rss for pid in children(daemon))
        with Receiver(legacy, 0x51, len(bodies)) as receiver:
            put_into_spool(web.rootfs / "srv/out", bodies)
            assert [message.body for message in receiver.messages()] == bodies
        assert sum(psutil.Process(pid).memory_info().rss for pid in children(daemon)) < memory + (20 << 20)
        wait_until(lambda: seen(tap) == len(bodies), "every message was shown or counted")
        assert set(tap.bodies()) <= set(bodies)
        for client in deaf:
            client.close()
        wait_until(lambda: len(children(daemon)) == 1, "a client that has gone costs nothing any more")


def seen(tap: Tap) -> int:
    return sum(item.get("missed", 1) for item in tap.items)


def test_tap_outlives_its_agent_and_ends_with_its_route(tmp_path: Path, unshare_container: Factory) -> None:
    with echo(tmp_path, unshare_container) as (daemon, web, _legacy):
        tap = Tap(daemon, name="r:queue")
        put_into_spool(web.rootfs / "srv/out", [b"one"])
        assert tap.until(1) == [b"one"]
        kill_and_wait(daemon.agents()["r:queue"]["pid"])
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [b"two"])
        assert tap.until(2) == [b"one", b"two"]
        text = daemon.config.read_text(encoding="utf-8")
        daemon.config.write_text(text[: text.index("[route.r]")], encoding="utf-8")
        daemon.call("reload", wait=True)
        assert tap.ends()
        assert tap.error is None


def test_copies_are_wiped_after_the_last_tap(tmp_path: Path, unshare_container: Factory) -> None:
    """While a tap runs, its copies are in memory that no new agent gets; after it, they are nowhere."""
    word = b"a secret that only the tap shows"
    with echo(tmp_path, unshare_container) as (daemon, web, legacy):
        tap = Tap(daemon, name="r", count=1)
        put_into_spool(web.rootfs / "srv/out", [word])
        with Receiver(legacy, 0x51, 1) as receiver:
            receiver.messages()
        assert tap.until(1) == [word]
        kill_and_wait(daemon.agents()["r:files"]["pid"])
        daemon.wait_for("RUNNING")
        assert word not in readable(daemon.agents()["r:files"]["pid"])
        wait_until(lambda: word not in readable(daemon.pid), "the copy is gone", WIPE_AFTER + 10)
        assert base64.b64encode(word)[:40] not in readable(daemon.pid)
