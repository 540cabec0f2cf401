"""Messages that their queue cannot take: put aside while the rest flows; listed, shown, delivered after all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nsbridge.config.errors import NsbridgeError
from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import LIMIT, run, wait_until
from tests.system.test_relay import route
from tests.system.traffic import HasPid, Receiver, Sent, put_into_spool, send_all, visible

MSGMAX = 8192  # bytes, the kernel's default
TOO_LONG = b"x" * (MSGMAX + 1)


def set_msgmax(container: HasPid, size: int) -> None:
    """Set it in the container's ipc namespace alone."""
    write = f"echo {size} > /proc/sys/kernel/msgmax"
    run(["nsenter", f"--target={container.pid}", "--ipc", "--", "sh", "-c", write])


def ctl(daemon: Nsbridged, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the real command."""
    command = [str(Path(sys.executable).with_name("nsbridgectl")), "-s", str(daemon.socket), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)


def listed(daemon: Nsbridged, *names: str) -> list[dict[str, Any]]:
    """Return the output of `dead list --json`."""
    done = ctl(daemon, "dead", "list", *names, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    letters: list[dict[str, Any]] = json.loads(done.stdout)["letters"]
    return letters


def files_of(daemon: Nsbridged) -> list[str]:
    """Return every file below the dead letters' directory."""
    return [name for _, _, names in os.walk(daemon.directory / "state/dead") for name in names]


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_a_message_too_long_for_its_queue_is_delivered_later(
    tmp_path: Path, unshare_container: Factory, delivery: str
) -> None:
    """8193 bytes where 8192 are the limit: with the reason, nothing else waits for it; then all of it, once."""
    web, legacy = unshare_container(), unshare_container()
    routes = route(web.spec, legacy.spec).replace("[route.r]\n", f'[route.r]\ndelivery = "{delivery}"\n', 1)
    bodies = [b"before", TOO_LONG, b"after", b""]
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        with Receiver(legacy, 0x51, 3) as receiver:
            put_into_spool(web.rootfs / "srv/out", bodies)
            assert receiver.messages() == [Sent(7, b"before"), Sent(7, b"after"), Sent(7, b"")]
        wait_until(lambda: not visible(web.rootfs / "srv/out"), "all files are released")
        (letter,) = listed(daemon)
        assert (letter["agent"], letter["seq"], letter["bytes"], letter["type"]) == ("r:queue", 2, len(TOO_LONG), 0)
        assert letter["where"] == "queue 0x51"
        assert letter["why"] == "8193 bytes are more than its ipc namespace allows: kernel.msgmax there is 8192"
        flow = daemon.flow("r:files")
        assert (flow["dead"], flow["dead_letters"]) == (1, 1)
        assert "1 dead" in ctl(daemon, "status").stdout
        shown = ctl(daemon, "dead", "show", "r:queue/2")
        assert shown.returncode == 0
        assert shown.stdout.endswith(f"\n\n{'x' * 1024} … and 7,169 more bytes, in the file\n")
        (file,) = re.findall(r"^file +(.*)$", shown.stdout, re.MULTILINE)
        assert Path(file).read_bytes() == TOO_LONG
        set_msgmax(legacy, 65536)
        with Receiver(legacy, 0x51, 1) as receiver:
            done = ctl(daemon, "dead", "retry", "r:queue/2")
            assert (done.returncode, done.stdout) == (0, "1 dead letter given back to be delivered: r:queue/2\n")
            assert receiver.messages() == [Sent(7, TOO_LONG)]
        wait_until(lambda: daemon.flow("r:files")["pending"] == 0, "it is confirmed")
        assert listed(daemon) == []
        assert files_of(daemon) == []
        daemon.wait_delivered("r:files", 4)
        flow = daemon.flow("r:files")
        assert (flow["dead"], flow["dead_letters"]) == (1, 0)
        assert "dead" not in ctl(daemon, "status").stdout
        aside = f"message 2: queue 0x51: {letter['why']}"
        reported = [line.split(" ", 1)[1] for line in ctl(daemon, "events").stdout.splitlines() if " dead " in line]
        assert reported == [f"r:queue dead aside: {aside}", f"r:queue dead given back: {letter['id']}"]
        assert f"dead letter: {aside} (nsbridgectl dead list)" in daemon.said()


def test_one_that_still_is_too_long_is_put_aside_again(tmp_path: Path, unshare_container: Factory) -> None:
    """Under its new number; nothing is lost."""
    web, legacy = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [TOO_LONG])
        wait_until(lambda: [letter["seq"] for letter in listed(daemon)] == [1], "the first is put aside")
        assert ctl(daemon, "dead", "retry", "all").returncode == 0
        wait_until(lambda: [letter["seq"] for letter in listed(daemon)] == [2], "it is put aside again")
        assert daemon.flow("r:files")["dead"] == 2
        assert ctl(daemon, "dead", "show", "r:queue/1").returncode == 1


def test_a_retry_reaches_a_source_that_waits_in_msgrcv(tmp_path: Path, unshare_container: Factory) -> None:
    """From queue to queue, types kept; and its queue is taken from as before afterwards, an empty message too."""
    one, two = unshare_container(), unshare_container()
    agent = '[route.q.agent.{}]\ncontainer = "{}"\nqueue = {{ {} = {{ key = 0x61 }}, create = true }}\n'
    routes = "[route.q]\n" + agent.format("one", one.spec, "out") + agent.format("two", two.spec, "in")
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        set_msgmax(one, 65536)
        send_all(one, 0x61, [Sent(5, TOO_LONG), Sent(6, TOO_LONG + b"y")])
        wait_until(lambda: len(listed(daemon, "q:two")) == 2, "both are put aside")
        assert [letter["type"] for letter in listed(daemon)] == [5, 6]
        set_msgmax(two, 65536)
        pids = {name: agent["pid"] for name, agent in daemon.agents().items()}
        with Receiver(two, 0x61, 5) as receiver:
            assert ctl(daemon, "dead", "retry", "q").returncode == 0
            wait_until(lambda: daemon.flow("q:one")["delivered"] == 2, "both are delivered")
            send_all(one, 0x61, [Sent(1, b""), Sent(2, b"two"), Sent(3, b"")])
            assert receiver.messages() == [
                Sent(5, TOO_LONG),
                Sent(6, TOO_LONG + b"y"),
                Sent(1, b""),
                Sent(2, b"two"),
                Sent(3, b""),
            ]
        assert {name: agent["pid"] for name, agent in daemon.agents().items()} == pids


@pytest.mark.parametrize("endpoint", ["file", "log"])
def test_a_retry_is_not_mistaken_for_what_a_file_has(tmp_path: Path, unshare_container: Factory, endpoint: str) -> None:
    """The last content stays known: across the retry and a restart of the source, nothing is taken twice."""
    web, legacy = unshare_container(), unshare_container()
    routes = (
        f'[route.r]\n[route.r.agent.web]\ncontainer = "{web.spec}"\n{endpoint} = {{ out = "/srv/out" }}\n'
        f'[route.r.agent.queue]\ncontainer = "{legacy.spec}"\nqueue = {{ in = {{ key = 0x51 }}, create = true }}\n'
    )
    end = b"\n" if endpoint == "log" else b""
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        for number, body in enumerate((TOO_LONG, TOO_LONG + b"y", b"last"), 1):
            with (web.rootfs / "srv/out").open("ab" if endpoint == "log" else "wb") as file:
                file.write(body + end)
            wait_until(lambda: _handled(daemon) == number, "it is taken and done with")  # noqa: B023
        assert [letter["seq"] for letter in listed(daemon)] == _seqs(endpoint)
        set_msgmax(legacy, 65536)
        with Receiver(legacy, 0x51, 4) as receiver:
            assert ctl(daemon, "dead", "retry", f"r:queue/{_seqs(endpoint)[0]}").returncode == 0
            wait_until(lambda: daemon.flow("r:web")["delivered"] == 2, "the first is delivered after all")
            kill_and_wait(daemon.agents()["r:web"]["pid"])
            daemon.wait_for("RUNNING")
            assert ctl(daemon, "dead", "retry", "all").returncode == 0
            wait_until(lambda: daemon.flow("r:web")["delivered"] == 3, "the second too")
            daemon.call("restart", names=["r:web"], wait=True)
            with (web.rootfs / "srv/out").open("ab" if endpoint == "log" else "wb") as file:
                file.write(b"new" + end)
            assert [sent.body for sent in receiver.messages()] == [b"last", TOO_LONG, TOO_LONG + b"y", b"new"]


def _handled(daemon: Nsbridged) -> int:
    flow = daemon.flow("r:web")
    return int(flow["delivered"] + flow["dead"])


def _seqs(endpoint: str) -> list[int]:
    """Return those of the first two messages: a log's first number says where it begins."""
    return [2, 3] if endpoint == "log" else [1, 2]


def test_a_retry_waits_for_a_source_that_does_not_run(tmp_path: Path, unshare_container: Factory) -> None:
    """The answer reports the wait; the message is delivered when the source runs, also by a later daemon."""
    web, legacy = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [TOO_LONG, b"x" * 9000])
        wait_until(lambda: len(listed(daemon)) == 2, "both are put aside")
        daemon.call("stop", names=["r:files"], wait=True)
        done = ctl(daemon, "dead", "retry", "all")
        assert done.returncode == 0
        assert done.stdout == (
            "2 dead letters given back to be delivered: r:queue/1..2\n"
            "r:files is STOPPED: it delivers them when it runs\n"
        )
        assert ctl(daemon, "dead", "list").stdout == "2 given back, to be delivered by r:files when it can\n"
        set_msgmax(legacy, 65536)
        daemon.stop()
        daemon.start()
        with Receiver(legacy, 0x51, 2) as receiver:
            assert receiver.messages() == [Sent(7, TOO_LONG), Sent(7, b"x" * 9000)]
        assert re.search(
            r"INFO r:files 2 dead letters were taken again, as messages 3 to 4: [0-9a-f]{16}-1\.\.2\n", daemon.said()
        )
        wait_until(lambda: ctl(daemon, "dead", "list").stdout == "no dead letters\n", "none is left")


def test_dropped_letters_are_gone(tmp_path: Path, unshare_container: Factory) -> None:
    """One by its ID, the rest by its agent; the log says so; the counter stays."""
    web, legacy = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [TOO_LONG] * 3)
        wait_until(lambda: len(listed(daemon)) == 3, "all are put aside")
        (first, second, _) = listed(daemon)
        assert ctl(daemon, "dead", "drop", first["id"]).stdout == "1 dead letter dropped: r:queue/1\n"
        assert [letter["seq"] for letter in listed(daemon)] == [2, 3]
        assert ctl(daemon, "dead", "drop", "r:files").stdout == "0 dead letters dropped\n"
        assert ctl(daemon, "dead", "drop", "r:queue").stdout == "2 dead letters dropped: r:queue/2..3\n"
        assert files_of(daemon) == []
        assert daemon.flow("r:files")["dead"] == 3
        assert f"WARNING r:queue 2 dead letters were dropped, 16,386 B: {second['id']}..3" in daemon.said()
        done = ctl(daemon, "dead", "drop", first["id"])
        assert done.returncode == 1
        assert "is no dead letter; nsbridgectl dead list shows them" in done.stderr
        assert ctl(daemon, "dead", "retry", "x:y/1").returncode == 5
        done = ctl(daemon, "dead", "show", "r:queue")
        assert (
            done.stderr == "nsbridgectl: 'r:queue' is not the ID of a dead letter; nsbridgectl dead list shows them\n"
        )
        assert f"r:queue dead dropped: {second['id']}" in ctl(daemon, "events").stdout
        assert ctl(daemon, "dead", "list", "nobody").returncode == 5


@pytest.mark.parametrize("window", [8, 512])
def test_kills_of_the_source_neither_lose_nor_repeat_a_retry(
    tmp_path: Path, unshare_container: Factory, window: int
) -> None:
    """300 letters are given back in ten portions, and after each the agent that takes them again is killed."""
    web, legacy = unshare_container(), unshare_container()
    count, portion = 300, 30
    routes = route(web.spec, legacy.spec).replace("[route.r]\n", f"[route.r]\nwindow = {{ messages = {window} }}\n", 1)
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        bodies = [b"%08d" % number + TOO_LONG for number in range(count)]
        put_into_spool(web.rootfs / "srv/out", bodies)
        wait_until(lambda: daemon.flow("r:files")["dead"] == count, "all are put aside", 60)
        set_msgmax(legacy, 65536)
        with Receiver(legacy, 0x51, count + 1) as receiver:
            kills = 0
            for first in range(1, count, portion):
                letters = [f"r:queue/{seq}" for seq in range(first, first + portion)]
                assert ctl(daemon, "dead", "retry", *letters).returncode == 0
                pid = daemon.agents()["r:files"]["pid"]
                if pid is not None:
                    kill_and_wait(pid)
                    kills += 1
                daemon.call("start", names=["r:files"])  # or the delay would grow
            wait_until(lambda: not files_of(daemon), "all are taken")
            daemon.wait_for("RUNNING")
            wait_until(lambda: daemon.flow("r:files")["delivered"] == count, "all are delivered", 60)
            put_into_spool(web.rootfs / "srv/out", [b"end"])
            received = [sent.body for sent in receiver.messages()]
        assert received == [*bodies, b"end"]
        assert kills > 3


def test_what_lies_in_the_directory_is_hostile(tmp_path: Path, unshare_container: Factory) -> None:
    """A FIFO, links, a directory and nonsense in place of letters hold nobody up and lead nowhere."""
    web, legacy = unshare_container(), unshare_container()
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    secret.chmod(0o600)
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        box = tmp_path / "state/dead/r/queue"
        for number in range(1, 7):
            stem = box / f"{5:016x}-{number:020d}"
            note = {"epoch": 5, "seq": number, "type": 1, "bytes": 1, "where": "\x1b[2J", "why": "x" * 9999, "time": 1}
            Path(f"{stem}.json").write_text(json.dumps(note)[:4000] if number == 1 else json.dumps(note | {"why": ""}))
            Path(f"{stem}.body").write_bytes(b"body")
        stems = [f"{box}/{5:016x}-{number:020d}" for number in range(1, 7)]
        for number, make in ((1, os.mkfifo), (2, os.mkdir)):
            os.unlink(f"{stems[number]}.body")
            make(f"{stems[number]}.body")
        os.unlink(f"{stems[3]}.body")
        os.symlink(secret, f"{stems[3]}.body")
        os.unlink(f"{stems[4]}.body")
        os.link(secret, f"{stems[4]}.body")
        os.unlink(f"{stems[5]}.json")
        os.mkfifo(f"{stems[5]}.json")
        done = ctl(daemon, "dead", "list")
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) == 8
        assert "\x1b" not in done.stdout
        done = ctl(daemon, "dead", "retry", "all")
        assert (done.returncode, done.stderr) == (1, "")
        assert "0 dead letters given back" in done.stdout
        assert secret.stat().st_mode & 0o777 == 0o600
        with pytest.raises(NsbridgeError):
            daemon.call("dead_show", id="r:queue/4")
        done = ctl(daemon, "dead", "drop", "all")
        assert (done.returncode, done.stdout) == (0, "6 dead letters dropped: r:queue/1..6\n")
        assert secret.read_bytes() == b"secret"
        assert files_of(daemon) == []
