"""A wedged agent is killed and replaced within the deadline, whatever it hangs in; one that only waits is left alone.

The deadline counts from the last sign of life, so from the fault on it takes no longer than that. Two thirds of it are
for the silence, the rest for the successor.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Factory
from tests.system.faults import TO_LEGACY, TO_WEB, bodies, configured, says
from tests.system.hanging_fs import BODY, HangingFs
from tests.system.nsbridged import Nsbridged
from tests.system.room import stays, wait_dead, wait_until
from tests.system.test_relay import route
from tests.system.tracing import held, waiting_in
from tests.system.traffic import Receiver, Sent, put_into_spool, send_all, wait_for_files

pytestmark = pytest.mark.alone  # it measures when a deadline is noticed

DEADLINE = 1.5  # seconds
HEALTH = f'health = {{ deadline = "{int(DEADLINE * 1000)}ms" }}'
AT_LEAST_ONCE = 'delivery = "at-least-once"'
BACK_WITHIN = 1.0  # seconds from the kill on, on a machine that is busy with other tests too


@pytest.fixture
def pair(unshare_container: Factory) -> tuple[Any, Any]:
    """Return the container with files, and the one with queues."""
    return unshare_container(), unshare_container()


def daemon_for(directory: Path, pair: tuple[Any, Any], line: str = "") -> Nsbridged:
    """Return a daemon with the route `r` of test_relay."""
    routes = route(pair[0].spec, pair[1].spec)
    return Nsbridged(directory, configured(routes, line) if line else routes, HEALTH)


def is_replaced(daemon: Nsbridged, name: str, before: dict[str, Any], since: float) -> None:
    """Assert that it was killed within the deadline since `since`, then came back; status and log have the reason."""
    wait_dead(before["pid"], 2 * DEADLINE)
    noticed = time.monotonic() - since
    wait_until(lambda: daemon.agents()[name]["pid"] not in (None, before["pid"]), f"{name} is back")
    daemon.wait_for("RUNNING", name)
    print(f"{name}: killed after {noticed:.2f} s, running after {time.monotonic() - since:.2f} s")
    after = daemon.agents()[name]
    assert noticed <= DEADLINE, "the deadline"
    assert time.monotonic() - since <= DEADLINE + BACK_WITHIN
    assert after["last_exit"].startswith("killed by SIGKILL: wedged: ")
    assert after["restarts"] == before["restarts"] + 1
    assert f"{name} wedged: " in daemon.said()


def relays(daemon: Nsbridged, pair: tuple[Any, Any]) -> None:
    """Assert that one message passes each way, beyond what is there."""
    before = daemon.flow("r:files")["delivered"], daemon.flow("r:queue")["delivered"]
    put_into_spool(pair[0].rootfs / "srv/out", [b"x"])
    send_all(pair[1], TO_WEB, [Sent(1, b"y")])
    wait_until(lambda: daemon.flow("r:files")["delivered"] == before[0] + 1, "files are carried")
    wait_until(lambda: daemon.flow("r:queue")["delivered"] == before[1] + 1, "queue messages are carried")


@pytest.mark.parametrize("name", ["r:files", "r:queue"])
def test_a_stopped_agent_is_replaced_within_the_deadline(tmp_path: Path, pair: tuple[Any, Any], name: str) -> None:
    """SIGSTOP. Status calls it wedged before it is killed; the other agent stays; messages continue."""
    with daemon_for(tmp_path, pair) as daemon:
        daemon.wait_for("RUNNING")
        before = daemon.agents()
        os.kill(before[name]["pid"], signal.SIGSTOP)
        stopped = time.monotonic()
        wait_until(lambda: daemon.agents()[name]["phase"] == "wedged", "status says so")
        assert "no heartbeat for " in daemon.agents()[name]["detail"]
        is_replaced(daemon, name, before[name], stopped)
        (other,) = set(before) - {name}
        assert daemon.agents()[other]["pid"] == before[other]["pid"]
        relays(daemon, pair)


@pytest.mark.senders
@pytest.mark.parametrize("which", [0, 1])
def test_a_stopped_sender_of_an_idle_agent_is_noticed(tmp_path: Path, pair: tuple[Any, Any], which: int) -> None:
    """Before the first message depends on it."""
    with daemon_for(tmp_path, pair) as daemon:
        daemon.wait_for("RUNNING")
        before = daemon.agents()["r:queue"]
        os.kill(before["senders"][which], signal.SIGSTOP)
        is_replaced(daemon, "r:queue", before, time.monotonic())
        relays(daemon, pair)


@pytest.mark.senders
def test_a_sender_that_hangs_is_noticed_by_what_it_does_not_send(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """No report says that it stands still; its agent's loop beats on. Every message comes, once."""
    with daemon_for(tmp_path, pair) as daemon, Receiver(pair[1], TO_LEGACY, 100) as receiver:
        daemon.wait_for("RUNNING")
        before = daemon.agents()["r:queue"]
        with held(before["senders"][0]):
            put_into_spool(pair[0].rootfs / "srv/out", bodies(100, 100))
            is_replaced(daemon, "r:queue", before, time.monotonic())
        assert "the work beside its loop has made no progress" in daemon.agents()["r:queue"]["last_exit"]
        assert [message.body for message in receiver.messages()] == bodies(100, 100)


@pytest.mark.senders
def test_a_sender_hanging_beside_a_full_queue_is_noticed_later(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """It had reported that the queue was full, which was true then; while it was, waiting was correct."""
    messages = bodies(100, 1000)
    with daemon_for(tmp_path, pair) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(pair[0].rootfs / "srv/out", messages)
        says(daemon, "r:queue", "queue full")
        before = daemon.agents()["r:queue"]
        with held(before["senders"][0]), held(before["senders"][1]):
            stays(lambda: daemon.agents()["r:queue"]["pid"] == before["pid"], "it is not judged", 1.2 * DEADLINE)
            with Receiver(pair[1], TO_LEGACY, 100) as receiver:
                is_replaced(daemon, "r:queue", before, time.monotonic())
                assert [message.body for message in receiver.messages()] == messages


def test_a_thread_hanging_in_msgrcv_is_noticed_by_its_backlog(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """It may wait there indefinitely, until there is a message for it."""
    with daemon_for(tmp_path, pair, AT_LEAST_ONCE) as daemon:
        daemon.wait_for("RUNNING")
        before = daemon.agents()["r:queue"]
        with held(waiting_in(before["pid"], "msgrcv")):
            stays(lambda: daemon.agents()["r:queue"]["pid"] == before["pid"], "it is not judged", 1.2 * DEADLINE)
            send_all(pair[1], TO_WEB, [Sent(1, b"to be taken")])
            is_replaced(daemon, "r:queue", before, time.monotonic())
        assert [file.read_bytes() for file in wait_for_files(pair[0].rootfs / "srv/in", 1)] == [b"to be taken"]


def test_a_thread_hanging_in_msgsnd_is_noticed_later(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """At least once, where a thread of the agent waits for room; the message that it had may come twice."""
    messages = bodies(100, 1000)
    with daemon_for(tmp_path, pair, AT_LEAST_ONCE) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(pair[0].rootfs / "srv/out", messages)
        says(daemon, "r:queue", "queue full")
        before = daemon.agents()["r:queue"]
        with held(waiting_in(before["pid"], "msgsnd")), Receiver(pair[1], TO_LEGACY, 100) as receiver:
            is_replaced(daemon, "r:queue", before, time.monotonic())
            assert {message.body for message in receiver.messages()} >= set(messages[:99])


def test_a_full_queue_is_not_taken_for_a_wedged_agent(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """An idle one is not either: nothing is killed in several deadlines."""
    with daemon_for(tmp_path, pair) as daemon:
        daemon.wait_for("RUNNING")
        before = daemon.agents()
        put_into_spool(pair[0].rootfs / "srv/out", bodies(100, 1000))
        says(daemon, "r:queue", "queue full")
        end = time.monotonic() + 2 * DEADLINE
        while time.monotonic() < end:
            agents = daemon.agents()
            assert {name: agent["pid"] for name, agent in agents.items()} == {n: a["pid"] for n, a in before.items()}
            assert agents["r:queue"]["phase"] == "blocked"
            assert max(agent["health"]["silent_s"] for agent in agents.values()) < DEADLINE * 2 / 3
            time.sleep(0.2)  # the pace of looks at what must stay


def test_time_in_which_everything_stood_still_does_not_count(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """The supervisor stopped alone, then it and all agents: as when the machine is suspended, or a cgroup frozen."""
    with daemon_for(tmp_path, pair) as daemon:
        daemon.wait_for("RUNNING")
        before = daemon.agents()
        everybody = [pid for agent in before.values() for pid in (agent["pid"], *agent["senders"])]
        for others in ([], everybody):
            stopped = [daemon.pid, *others]
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(1.2 * DEADLINE)  # this is the fault itself
            for pid in stopped:  # the supervisor first
                os.kill(pid, signal.SIGCONT)
            relays(daemon, pair)
            pids = {name: agent["pid"] for name, agent in before.items()}
            stays(lambda: {n: a["pid"] for n, a in daemon.agents().items()} == pids, "none is judged", 0.5 * DEADLINE)  # noqa: B023


def test_an_agent_that_is_stopped_while_it_starts_is_replaced(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """Before it is ready it owes signs of life as well."""
    with daemon_for(tmp_path, pair) as daemon:
        daemon.wait_for("RUNNING")
        agent = daemon.agents()["r:files"]
        os.kill(daemon.pid, signal.SIGSTOP)
        os.kill(agent["pid"], signal.SIGKILL)
        os.kill(daemon.pid, signal.SIGCONT)
        wait_until(lambda: daemon.agents()["r:files"]["pid"] not in (None, agent["pid"]), "a new one")
        new = daemon.agents()["r:files"]
        os.kill(new["pid"], signal.SIGSTOP)  # it may have become ready by now: then it is as any other
        is_replaced(daemon, "r:files", new, time.monotonic())


@pytest.mark.parametrize("how", ["deaf", "mute"])
def test_an_agent_on_a_hanging_file_system_is_killed_alone(
    tmp_path: Path, runc_container: Factory, unshare_container: Factory, how: str
) -> None:
    """A spool in user space (FUSE). Where the kernel does not let it die, status says so, and it is replaced as soon as
    it does; meanwhile the other agent of the route and the other route serve. What was in the spool comes, once."""
    web, legacy, other = runc_container(), unshare_container(), unshare_container()
    (web.rootfs / "srv/out").mkdir()
    routes = route(web.spec, legacy.spec) + route(other.spec, other.spec).replace("route.r", "route.s")
    with HangingFs(web.pid, "/srv/out", how) as hanging, Nsbridged(tmp_path, routes, HEALTH) as daemon:
        daemon.wait_for("RUNNING")
        before = daemon.agents()
        hanging.hang("message")
        since = time.monotonic()
        if how == "deaf":
            wait_dead(before["r:files"]["pid"], 2 * DEADLINE)
            assert time.monotonic() - since <= DEADLINE + 0.5, "it read the name first, which was a sign of life"
        else:
            wait_until(lambda: "stuck in the kernel" in daemon.agents()["r:files"]["detail"], "status says so")
            assert daemon.agents()["r:files"]["phase"] == "wedged"
        put_into_spool(other.rootfs / "srv/out", [b"x"])
        wait_until(lambda: daemon.flow("s:files")["delivered"] == 1, "the other route continues")
        assert daemon.agents()["r:queue"]["pid"] == before["r:queue"]["pid"]
        hanging.answer_all()
        with Receiver(legacy, TO_LEGACY, 1) as receiver:
            assert [message.body for message in receiver.messages()] == [BODY]
        daemon.wait_for("RUNNING")
        assert daemon.agents()["r:queue"]["pid"] == before["r:queue"]["pid"]
        daemon.wait_delivered("r:files", 1)
        assert "wedged: no heartbeat" in daemon.said()


def test_an_agent_that_has_grown_too_large_is_restarted_in_order(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """The limit is so low that everyone is too large: each hands over what is in flight, says so, and comes back."""
    agent = '[route.g.agent.{}]\ncontainer = "{}"\nspool = {{ out = "/srv/o", in = "/srv/i", max_message = 1000 }}\n'
    routes = '[route.g]\nwindow = { messages = 10, bytes = "1kB" }\n' + agent.format("a", pair[0].spec)
    routes += agent.format("b", pair[1].spec)
    health = 'health = { deadline = "500ms", max_memory = 1 }'
    messages = bodies(200, 100)
    with Nsbridged(tmp_path, routes, health) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(pair[0].rootfs / "srv/o", messages)
        wait_until(lambda: all(a["restarts"] and a["last_exit"] for a in daemon.agents().values()), "each is restarted")
        assert [file.read_bytes() for file in wait_for_files(pair[1].rootfs / "srv/i", 200)] == messages
        said = [a["last_exit"] for a in daemon.agents().values()]
    assert all("exit code 0: too large: pid " in text and " MB are allowed" in text for text in said), said
    assert "too large: pid" in daemon.said()
