"""Dead letters have a quota: a container cannot fill the host's disk with undeliverable messages."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import run, wait_until
from tests.system.test_dead_letters import TOO_LONG, ctl, listed, set_msgmax
from tests.system.test_faults_room import fill
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool

FULL = "blocked: dead letters of r:queue are full (3 letters): "


def limits(**keys: Any) -> str:
    """Return the key of [daemon]."""
    return "dead = { " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in keys.items()) + " }\n"


def detail(daemon: Nsbridged, agent: str = "r:queue") -> str:
    """Return the agent's detail in status."""
    return str(daemon.agents()[agent]["detail"])


def seqs(daemon: Nsbridged) -> list[int]:
    """Return the seqs of the letters."""
    return [letter["seq"] for letter in listed(daemon)]


def test_newlines_into_a_line_log_do_not_fill_state_dir(tmp_path: Path, unshare_container: Factory) -> None:
    """Issue 12: it was full in 0.4 s. Now the route is blocked and says so; new routes find room for their journals."""
    web, other, state = unshare_container(), unshare_container(), tmp_path / "state"
    count, message = 30_000, b"x" * 2000 + b"\n"
    agent = '[route.{0}.agent.{1}]\ncontainer = "{2}"\nlog = {{ {3} = "/srv/{0}{1}", framing = "{4}" }}\n'
    routes = "".join(
        f"[route.{name}]\n"
        + agent.format(name, "a", web.spec, "out", "length")
        + agent.format(name, "b", other.spec, "in", "line")
        for name in ("r", "s")
    )
    state.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", str(state)])
    try:
        with Nsbridged(tmp_path, routes[: routes.index("[route.s]")]) as daemon:
            daemon.wait_for("RUNNING")
            with (web.rootfs / "srv/ra").open("ab") as file:
                file.write((struct.pack(">I", len(message)) + message) * count)
            wait_until(lambda: "full" in detail(daemon, "r:b"), "it is blocked", 60)
            assert detail(daemon, "r:b").startswith(f"blocked: state_dir {state} is full, so ")
            assert "nsbridgectl dead" in detail(daemon, "r:b")
            daemon.config.write_text(daemon.config.read_text() + routes[routes.index("[route.s]") :])
            daemon.call("reload")
            daemon.wait_for("RUNNING")
            with (web.rootfs / "srv/sa").open("ab") as file:
                file.write(struct.pack(">I", 3) + b"new")
            wait_until(lambda: (other.rootfs / "srv/sb").read_bytes() == b"new\n", "a new route works")
            before = daemon.flow("r:a")["dead"]
            assert 1000 < before < 10_001
            assert ctl(daemon, "dead", "drop", "r:b").returncode == 0
            wait_until(lambda: daemon.flow("r:a")["dead"] > before, "it resumes by itself")
    finally:
        run(["umount", "-l", str(state)])


def test_full_box_loses_nothing_at_any_kill(tmp_path: Path, unshare_container: Factory) -> None:
    """Never more than three letters, also after kills; each of forty is a letter once, in its order."""
    web, legacy = unshare_container(), unshare_container()
    bodies = [b"%02d" % number + TOO_LONG for number in range(40)]
    with Nsbridged(tmp_path, route(web.spec, legacy.spec), limits(max_letters=3)) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", bodies)
        seen: list[bytes] = []
        while len(seen) < len(bodies):
            most = min(3, len(bodies) - len(seen))
            wait_until(lambda: len(listed(daemon)) == most, "there are as many as may be")  # noqa: B023
            if len(seen) + 3 < len(bodies):
                wait_until(lambda: detail(daemon).startswith(FULL), f"it is blocked: {detail(daemon)}")
            if len(seen) % 4 == 0:
                kill_and_wait(daemon.agents()["r:queue"]["pid"])
            if len(seen) == 15:
                daemon.kill()
                daemon.start()
            daemon.call("start", names=["r"])
            daemon.wait_for("RUNNING")
            letters = listed(daemon)
            assert len(letters) == most
            for letter in letters[: 1 + len(seen) % 3]:
                seen.append(Path(daemon.call("dead_show", id=letter["id"])["file"]).read_bytes())
                assert ctl(daemon, "dead", "drop", letter["id"]).returncode == 0
        assert seen == bodies
        wait_until(lambda: daemon.flow("r:files")["pending"] == 0, "nothing is pending")
        assert detail(daemon) == ""


def test_letters_given_back_make_room_and_come_again(tmp_path: Path, unshare_container: Factory) -> None:
    """`dead retry` makes room for others. Those that still are too long find none, and wait in their turn."""
    web, legacy = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec), limits(max_letters=3)) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [TOO_LONG] * 5)
        wait_until(lambda: detail(daemon).startswith(FULL), "it is blocked")
        assert ctl(daemon, "dead", "retry", "all").returncode == 0
        wait_until(lambda: seqs(daemon) == [4, 5, 6], "two that waited, and one of those given back")
        wait_until(lambda: detail(daemon).startswith(FULL), "it is blocked again")
        set_msgmax(legacy, 65536)
        with Receiver(legacy, 0x51, 5) as receiver:
            assert ctl(daemon, "dead", "retry", "all").returncode == 0
            assert receiver.messages() == [Sent(7, TOO_LONG)] * 5
        wait_until(lambda: daemon.flow("r:files")["pending"] == 0, "nothing is pending")
        assert (seqs(daemon), detail(daemon)) == ([], "")


def test_letters_given_back_have_the_same_quota(tmp_path: Path, unshare_container: Factory) -> None:
    """Their source does not run: what waits for it does not grow beyond the limit."""
    web, legacy = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec), limits(max_letters=3)) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [TOO_LONG] * 6)
        wait_until(lambda: detail(daemon).startswith(FULL), "it is blocked")
        wait_until(lambda: daemon.flow("r:files")["pending"] == 3, "the others wait in the sink")
        daemon.call("stop", names=["r:files"])
        assert ctl(daemon, "dead", "retry", "all").returncode == 0
        wait_until(lambda: len(listed(daemon)) == 3, "the others took their place")
        done = ctl(daemon, "dead", "retry", "all")
        assert done.returncode == 1
        assert "r:files has too many letters to take again (3 letters); retry it later" in done.stdout + done.stderr
        assert seqs(daemon) == [4, 5, 6]


def test_reload_of_the_quota_reaches_running_agents(tmp_path: Path, unshare_container: Factory) -> None:
    """At once, without a restart; and agents that start later."""
    web, legacy = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec), limits(max_letters=3)) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [TOO_LONG] * 9)
        wait_until(lambda: detail(daemon).startswith(FULL), "it is blocked")
        pids = {name: agent["pid"] for name, agent in daemon.agents().items()}
        daemon.config.write_text(daemon.config.read_text().replace("max_letters = 3", "max_letters = 5"))
        assert "daemon.dead.max_letters: 3 → 5: at once" in ctl(daemon, "reload").stdout
        wait_until(lambda: seqs(daemon) == [1, 2, 3, 4, 5], "there is room for two more")
        assert {name: agent["pid"] for name, agent in daemon.agents().items()} == pids
        kill_and_wait(pids["r:queue"])
        wait_until(lambda: "(5 letters)" in detail(daemon), "its successor has the new limit")
        daemon.config.write_text(daemon.config.read_text().replace("max_letters = 5", "when_full = 'drop-oldest'"))
        ctl(daemon, "reload")
        wait_until(lambda: len(seqs(daemon)) == 9, "there is room for all")


def test_drop_oldest_keeps_the_route_going_and_counts(tmp_path: Path, unshare_container: Factory) -> None:
    web, legacy = unshare_container(), unshare_container()
    more = limits(max_letters=3, when_full="drop-oldest")
    with Nsbridged(tmp_path, route(web.spec, legacy.spec), more) as daemon:
        daemon.wait_for("RUNNING")
        with Receiver(legacy, 0x51, 1) as receiver:
            put_into_spool(web.rootfs / "srv/out", [*[TOO_LONG] * 10, b"good"])
            assert receiver.messages() == [Sent(7, b"good")]
        assert seqs(daemon) == [8, 9, 10]
        flow = daemon.flow("r:files")
        assert (flow["dead"], flow["dead_dropped"], flow["dead_letters"]) == (10, 7, 3)
        wait_until(lambda: "dropped to make room (drop-oldest)" in daemon.said(), "the log says so")
        daemon.kill()
        daemon.start()
        daemon.wait_for("RUNNING")
        assert daemon.flow("r:files")["dead_dropped"] == 7


def test_letters_are_dropped_when_they_are_too_old(tmp_path: Path, unshare_container: Factory) -> None:
    """Also letters of the agent's predecessor, and without a new letter."""
    web, legacy = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec), limits(max_age="5s")) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [TOO_LONG] * 2)
        wait_until(lambda: len(listed(daemon)) == 2, "both are put aside")
        kill_and_wait(daemon.agents()["r:queue"]["pid"])
        daemon.wait_for("RUNNING")
        wait_until(lambda: not listed(daemon), "they are dropped")
        assert daemon.flow("r:files")["dead_dropped"] == 2


@pytest.mark.parametrize("size", [8193, 20_000])
@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_full_state_dir_resumes_by_itself(tmp_path: Path, unshare_container: Factory, delivery: str, size: int) -> None:
    """Issue 13, F4: only a restart helped, because no other message came. None is lost or repeated.

    By msgmax the kernel refuses the first message, by its msg_qbytes the agent does the second.
    """
    web, legacy, state = unshare_container(), unshare_container(), tmp_path / "state"
    routes = route(web.spec, legacy.spec).replace("[route.r]\n", f'[route.r]\ndelivery = "{delivery}"\n', 1)
    state.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(state)])
    try:
        with Nsbridged(tmp_path, routes) as daemon, Receiver(legacy, 0x51, 2) as receiver:
            daemon.wait_for("RUNNING")
            put_into_spool(web.rootfs / "srv/out", [b"first"])
            wait_until(lambda: daemon.flow("r:files")["pending"] == 0, "it relays")
            filler = fill(state)
            put_into_spool(web.rootfs / "srv/out", [b"x" * size])
            wait_until(
                lambda: detail(daemon).startswith(f"blocked: state_dir {state} is full, so "),
                "it is blocked by its dead letter",
            )
            pid = daemon.agents()["r:queue"]["pid"]
            filler.unlink()
            wait_until(lambda: seqs(daemon) == [2], "it is put aside")
            put_into_spool(web.rootfs / "srv/out", [b"last"])
            assert [sent.body for sent in receiver.messages()] == [b"first", b"last"]
            assert daemon.agents()["r:queue"]["pid"] == pid
            wait_until(lambda: daemon.flow("r:files")["pending"] == 0, "nothing is pending")
            assert (seqs(daemon), detail(daemon)) == ([2], "")
    finally:
        run(["umount", "-l", str(state)])


@pytest.mark.parametrize("evil", ["files", "bytes", "directory"])
def test_agent_that_fills_its_directory_is_stopped(tmp_path: Path, unshare_container: Factory, evil: str) -> None:
    """A compromised agent may write anything there. Here the test does so; only that agent's route stops."""
    web, legacy, other = unshare_container(), unshare_container(), unshare_container()
    routes = route(web.spec, legacy.spec) + route(other.spec, legacy.spec).replace("route.r", "route.s").replace(
        "0x5", "0x6"
    )
    with Nsbridged(tmp_path, routes, limits(max_bytes="1MB", max_letters=10)) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [TOO_LONG])
        wait_until(lambda: seqs(daemon) == [1], "there is an honest letter")
        box = tmp_path / "state/dead/r/queue"
        for number in range(1100 if evil == "files" else 70):
            (box / f"junk {number}").write_bytes(b"\0" * (1 << 20 if evil == "bytes" else 1))
        if evil == "directory":
            for number in range(1100):
                (box / "deep" / f"{number}").mkdir(parents=True)
        daemon.wait_for("FATAL", "r:queue")
        assert "its dead letters hold" in detail(daemon)
        assert str(box) in detail(daemon)
        assert daemon.agents()["s:queue"]["state"] == "RUNNING"
        daemon.call("start", names=["r:queue"])
        daemon.wait_for("FATAL", "r:queue")
        run(["sh", "-c", f"rm -r {box}/junk* {box}/deep 2>/dev/null; true"])
        daemon.call("start", names=["r:queue"])
        daemon.wait_for("RUNNING")
        with Receiver(legacy, 0x51, 1) as receiver:
            put_into_spool(web.rootfs / "srv/out", [b"good"])
            assert receiver.messages() == [Sent(7, b"good")]
        assert seqs(daemon) == [1]


def test_hostile_names_hurt_no_command(tmp_path: Path, unshare_container: Factory) -> None:
    """Thousands of files, names with newlines and escapes, a body with a hole of 1 TB, links and FIFOs as notes."""
    web, legacy = unshare_container(), unshare_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [TOO_LONG])
        wait_until(lambda: seqs(daemon) == [1], "there is an honest letter")
        (honest,) = listed(daemon)
        box = os.open(tmp_path / "state/dead/r/queue", os.O_RDONLY | os.O_DIRECTORY)
        for number in range(3000):
            name = b"%d\n\x1b[2J\xff.json" % number
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=box))
        for seq, kind in enumerate(("sparse", "fifo", "link", "socketless"), 100):
            stem = f"{5:016x}-{seq:020d}"
            note = {"epoch": 5, "seq": seq, "type": 1, "bytes": 1, "where": "\x1b[2J\n", "why": "\n", "time": 1}
            path = tmp_path / "state/dead/r/queue"
            (path / f"{stem}.json").write_text(json.dumps(note))
            if kind == "sparse":
                with (path / f"{stem}.body").open("wb") as file:
                    file.truncate(1 << 40)
            elif kind == "fifo":
                os.mkfifo(path / f"{stem}.body")
            elif kind == "link":
                os.symlink("/etc/shadow", path / f"{stem}.body")
        began = time.monotonic()
        done = ctl(daemon, "dead", "list")
        assert done.returncode == 0
        assert "\x1b" not in done.stdout
        assert honest["id"].split("/")[0] in done.stdout
        shown = ctl(daemon, "dead", "show", f"r:queue/{5:016x}-100")
        assert shown.returncode == 0
        assert len(shown.stdout) < 10_000
        assert ctl(daemon, "dead", "show", f"r:queue/{5:016x}-102").returncode == 1
        assert ctl(daemon, "dead", "retry", "all").returncode == 1, "what is hostile cannot be given back"
        assert time.monotonic() - began < 20
        wait_until(lambda: 2 in seqs(daemon), "the honest one was given back, and is put aside again")
        assert ctl(daemon, "dead", "drop", "all").returncode == 0
        assert seqs(daemon) == []
        assert daemon.agents()["r:queue"]["restarts"] == 0
        os.close(box)
