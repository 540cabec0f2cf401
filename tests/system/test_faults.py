"""Faults around it: queues that are full for long, queues and directories that go, processes that stand still.

Each test says what the fault may cost, which is nothing, and what status says meanwhile.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.system.conftest import Factory
from tests.system.faults import TO_LEGACY, TO_WEB, bodies, configured, says, says_nothing
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import LIMIT, wait_until
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool, send_all, visible, wait_for_files

FULL_FOR = 30.0  # seconds
GROWTH = 1 << 20  # bytes that the memory of all processes of a route may grow in that time
STANDS_STILL = 0.5  # seconds


# Queues


def test_a_consumer_that_stops_for_long_costs_nothing_but_time(tmp_path: Path, unshare_container: Factory) -> None:
    """The producer is held back by a full queue of its own, memory stays flat, status says why; then all arrives."""
    one, two = unshare_container(), unshare_container()
    queue = "queue = {{ in = {{ key = 0x61 }}, out = {{ key = 0x62 }}, create = true }}\n"
    agent = '[route.q.agent.{}]\ncontainer = "{}"\n' + queue
    routes = "[route.q]\n" + agent.format("one", one.spec) + agent.format("two", two.spec)
    messages = [Sent(1 + number % 3, body) for number, body in enumerate(bodies(20_000, 1000))]
    with Nsbridged(tmp_path, routes) as daemon, Receiver(two, 0x61, len(messages)) as receiver:
        daemon.wait_for("RUNNING")
        sender = threading.Thread(target=send_all, args=(one, 0x62, messages))
        sender.start()
        wait_until(lambda: daemon.flow("q:one")["delivered"] > 1000, "messages flow")
        receiver._running.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        says(daemon, "q:two", "blocked: queue full")
        pending = daemon.flow("q:one")["pending"]
        wait_until(lambda: is_steady(lambda: daemon.counters("q:one")), "nothing moves any more")
        before, delivered = memory_of(daemon), daemon.flow("q:one")["delivered"]
        while time.monotonic() < stopped + FULL_FOR:
            assert sender.is_alive(), "the producer is held back"
            assert daemon.agents()["q:two"]["detail"] == "blocked: queue full (queue 0x61)"
            daemon.wait_delivered("q:one", delivered)
            time.sleep(0.5)  # the pace of looks at what must stay
        after = memory_of(daemon)
        print(f"memory in {FULL_FOR:.0f} s of a full queue: {before} to {after} bytes")
        assert after - before < GROWTH
        pending = daemon.flow("q:one")["pending"]
        assert 0 < pending <= 1024 + 1, "the window bounds what is taken"
        receiver._running.send_signal(signal.SIGCONT)
        assert receiver.messages() == messages
        sender.join()
        assert {agent["restarts"] for agent in daemon.agents().values()} == {0}


def is_steady(look: Callable[[], object]) -> bool:
    before = look()
    time.sleep(0.2)  # the time in which nothing may change
    return look() == before


def memory_of(daemon: Nsbridged) -> int:
    """Return the bytes that only these agents and senders have."""
    total = 0
    for process in psutil.Process(daemon.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a child of the supervisor that looked at something, and has ended
            total += process.memory_full_info().uss
    return total


def test_a_queue_removed_under_senders_costs_only_its_content(tmp_path: Path, unshare_container: Factory) -> None:
    """Three times over; what had not been sent goes into the queue that takes its place, in order, once."""
    web, legacy = unshare_container(), unshare_container()
    messages = bodies(200, 4000)
    in_the_queue = 4  # of 4000 bytes in a queue of 16384
    with Nsbridged(tmp_path, configured(route(web.spec, legacy.spec), "window = { messages = 50 }")) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", messages)
        for number in range(1, 4):
            wait_until(lambda: daemon.flow("r:files")["delivered"] == number * in_the_queue, "the queue is full")  # noqa: B023
            says(daemon, "r:queue", "queue full")
            legacy.exec(["ipcrm", "-Q", hex(TO_LEGACY)])
        wait_until(lambda: daemon.flow("r:files")["delivered"] == 4 * in_the_queue, "the fourth queue is full")
        left = messages[3 * in_the_queue :]
        with Receiver(legacy, TO_LEGACY, len(left)) as receiver:
            assert receiver.messages() == [Sent(7, body) for body in left]
        daemon.wait_delivered("r:files", len(messages))
        flow = daemon.flow("r:files")
        assert (flow["in_doubt"], flow["dead"]) == (0, 0)
        says_nothing(daemon, "r:queue")


def test_a_missing_queue_is_waited_for_by_both_sides(tmp_path: Path, unshare_container: Factory) -> None:
    """Without `create` only its program makes it; until then status says which is missing."""
    web, legacy = unshare_container(), unshare_container()
    messages = bodies(100, 500)
    sent = [Sent(3, body) for body in messages]
    routes = route(web.spec, legacy.spec).replace(", create = true", "")
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        says(
            daemon,
            "r:queue",
            f"no queue {TO_WEB:#x} and {TO_LEGACY:#x} in {legacy.spec}: is the key right, has the program",
        )
        for turn in range(2):
            put_into_spool(web.rootfs / "srv/out", messages)
            with Receiver(legacy, TO_LEGACY, 100) as receiver:  # makes it
                assert [message.body for message in receiver.messages()] == messages
            send_all(legacy, TO_WEB, sent)
            files = wait_for_files(web.rootfs / "srv/in", 100 * (turn + 1))
            assert [file.read_bytes() for file in files[100 * turn :]] == messages
            for key in (TO_LEGACY, TO_WEB):
                legacy.exec(["ipcrm", "-Q", hex(key)])
            says(daemon, "r:queue", f"no queue {TO_WEB:#x} ")
        assert daemon.agents()["r:queue"]["restarts"] == 0


# Directories


def test_a_renamed_and_remade_spool_costs_nothing_taken(tmp_path: Path, unshare_container: Factory) -> None:
    """Taken messages are delivered; the old one's others stay there; the new one's come, also of the same names."""
    web, legacy = unshare_container(), unshare_container()
    out, old = web.rootfs / "srv/out", web.rootfs / "srv/old"
    messages = bodies(100, 4000)
    with Nsbridged(tmp_path, configured(route(web.spec, legacy.spec), "window = { messages = 10 }")) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(out, messages)
        wait_until(lambda: (daemon.flow("r:files")["delivered"], daemon.flow("r:files")["pending"]) == (4, 10), "full")
        wait_until(lambda: len(visible(out)) == 96, "what was delivered is removed")
        left = {name: (out / name).read_bytes() for name in visible(out)}
        out.rename(old)
        out.mkdir(exist_ok=True)
        newer = [b"new " + body for body in bodies(20, 100)]
        put_into_spool(out, newer)
        with Receiver(legacy, TO_LEGACY, 14 + 20) as receiver:
            came = [message.body for message in receiver.messages()]
        assert came[:14] == messages[:14]
        assert sorted(came[14:]) == newer
        wait_until(lambda: not visible(out), "delivered files are removed")
        assert {name: (old / name).read_bytes() for name in visible(old)} == left
        assert daemon.flow("r:files")["dead"] == 0


def test_a_spool_that_is_removed_and_remade_is_served(tmp_path: Path, unshare_container: Factory) -> None:
    """Messages that were taken from the removed one still come."""
    web, legacy = unshare_container(), unshare_container()
    out = web.rootfs / "srv/out"
    messages = bodies(30, 4000)
    with Nsbridged(tmp_path, configured(route(web.spec, legacy.spec), "window = { messages = 10 }")) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(out, messages)
        wait_until(lambda: (daemon.flow("r:files")["delivered"], daemon.flow("r:files")["pending"]) == (4, 10), "full")
        shutil.rmtree(out)
        out.mkdir(exist_ok=True)
        newer = bodies(3, 50)
        put_into_spool(out, newer)
        with Receiver(legacy, TO_LEGACY, 14 + 3) as receiver:
            assert [message.body for message in receiver.messages()] == messages[:14] + newer
        wait_until(lambda: not visible(out), "delivered files are removed")


def test_a_sink_s_directory_replaced_under_load_gets_the_rest(tmp_path: Path, unshare_container: Factory) -> None:
    """Renamed away three times, and removed: all that was ever handed over is in one of them, once, in order."""
    web, legacy = unshare_container(), unshare_container()
    inside = web.rootfs / "srv/in"
    messages = bodies(6000, 200)
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        sender = threading.Thread(target=send_all, args=(legacy, TO_WEB, [Sent(1, body) for body in messages]))
        sender.start()
        places = []
        for number in range(1, 4):
            wait_until(lambda: inside.is_dir() and len(visible(inside)) > 500, "some arrive in the new one")
            places.append(web.rootfs / f"srv/in.{number}")
            inside.rename(places[-1])
            inside.mkdir(exist_ok=True)
        sender.join()
        places.append(inside)
        wait_until(lambda: sum(len(visible(place)) for place in places) >= len(messages), "all arrive")
        files = sorted((name, place) for place in places for name in visible(place))
        assert [(place / name).read_bytes() for name, place in files] == messages
        shutil.rmtree(inside)
        send_all(legacy, TO_WEB, [Sent(1, b"last")])
        assert [file.read_bytes() for file in wait_for_files(inside, 1)] == [b"last"]


def test_more_files_than_inotify_reports_arrive_once_in_order(tmp_path: Path, unshare_container: Factory) -> None:
    """While their agent stands still, and after; each file is two events, and the kernel keeps 16384."""
    one, two = unshare_container(), unshare_container()
    agent = '[route.s.agent.{}]\ncontainer = "{}"\nspool = {{ {} = "/srv/{}" }}\n'
    routes = "[route.s]\n" + agent.format("one", one.spec, "out", "out") + agent.format("two", two.spec, "in", "in")
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    count = 2 * limit
    messages = [b"%d" % number for number in range(count)]
    spool = one.rootfs / "srv/out"
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        pid = daemon.agents()["s:one"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        program = threading.Thread(target=put_into_spool, args=(spool, messages))
        program.start()
        wait_until(lambda: len(os.listdir(spool)) > limit // 2 + 500, "the kernel has lost events")
        os.kill(pid, signal.SIGCONT)
        program.join()
        files = wait_for_files(two.rootfs / "srv/in", count)
        assert [file.read_bytes() for file in files] == messages
        wait_until(lambda: not visible(spool), "delivered files are removed")
        assert daemon.agents()["s:one"]["pid"] == pid


# Journals


def test_a_journal_damaged_during_a_stop_costs_only_its_content(tmp_path: Path, unshare_container: Factory) -> None:
    """A message that had left its queue and was not delivered is in the journal put aside, and the log says so."""
    web, legacy = unshare_container(), unshare_container()
    state = tmp_path / "state/journal/r"
    before, pending, after = bodies(10, 100), bodies(20, 200), bodies(30, 300)
    inside = web.rootfs / "srv/in"
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        send_all(legacy, TO_WEB, [Sent(1, body) for body in before])
        wait_for_files(inside, 10)
        os.kill(daemon.agents()["r:files"]["pid"], signal.SIGSTOP)
        send_all(legacy, TO_WEB, [Sent(1, body) for body in pending])
        wait_until(lambda: daemon.flow("r:queue")["pending"] == 20, "they are taken")
        kill_and_wait(daemon.agents()["r:queue"]["pid"])
        daemon.wait_for("RUNNING", "r:queue")
        daemon.call("stop", names=["r"], wait=True)
        data = bytearray((state / "queue.out").read_bytes())
        data[data.index(pending[0])] ^= 1
        (state / "queue.out").write_bytes(data)
        daemon.call("start", names=["r"], wait=True)
        send_all(legacy, TO_WEB, [Sent(1, body) for body in after])
        files = wait_for_files(inside, 40)
        assert [file.read_bytes() for file in files] == before + after, "by name, so also the epochs are in order"
        (aside,) = state.glob("queue.out.damaged-*")
        assert all(body in aside.read_bytes() for body in pending[1:])
        assert f"moved to {aside}" in daemon.said()


# Processes that stand still


def test_processes_that_stand_still_for_a_while_lose_nothing(tmp_path: Path, unshare_container: Factory) -> None:
    """Each agent and each sender in turn, under load in both directions."""
    web, legacy = unshare_container(), unshare_container()
    there, back = bodies(25_000, 100), bodies(25_000, 150)
    inside = web.rootfs / "srv/in"
    with (
        Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon,
        Receiver(legacy, TO_LEGACY, len(there)) as receiver,
    ):
        daemon.wait_for("RUNNING")
        threads = [
            threading.Thread(target=put_into_spool, args=(web.rootfs / "srv/out", there)),
            threading.Thread(target=send_all, args=(legacy, TO_WEB, [Sent(1, body) for body in back])),
        ]
        for thread in threads:
            thread.start()
        agents = daemon.agents()
        for pid in (agents["r:files"]["pid"], agents["r:queue"]["pid"], *agents["r:queue"]["senders"]):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(STANDS_STILL)  # this is the fault itself
            print([daemon.flow(name)["delivered"] for name in agents])
            os.kill(pid, signal.SIGCONT)
        assert [message.body for message in receiver.messages()] == there
        assert [file.read_bytes() for file in wait_for_files(inside, len(back))] == back
        for thread in threads:
            thread.join(LIMIT)
        assert {agent["restarts"] for agent in daemon.agents().values()} == {0}
