"""Reload: only what changed is touched, and a touched route loses and repeats nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from nsbridge.config.errors import EXIT_USAGE, NsbridgeError
from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.reload_room import Reloadable, Sender, numbers_in, route
from tests.system.room import wait_dead, wait_until
from tests.system.traffic import Receiver, put_into_spool

DIFFERENT = "window = { messages = 7 }"


def test_only_what_changed_is_touched(tmp_path: Path, runc_container: Factory) -> None:
    """One stays under load, one changes, one goes, one comes; with real containers."""
    web, legacy = runc_container(), runc_container()
    same, gone = route("same", web, legacy, 0x51), route("gone", web, legacy, 0x61)
    with Reloadable(tmp_path, same + route("other", web, legacy, 0x71) + gone) as daemon:
        daemon.wait_for("RUNNING")
        before = {name: daemon.pids(name) for name in ("same", "other", "gone")}
        with Sender(legacy, 0x52) as sender:
            wait_until(lambda: daemon.flow("same:queue")["delivered"] > 100, "it is under load")
            plan = daemon.reload(same, route("other", web, legacy, 0x71, DIFFERENT), route("new", web, legacy, 0x81))
        assert plan == {
            "dry_run": False,
            "stop": ["gone"],
            "start": ["new"],
            "restart": ["other"],
            "unchanged": ["same"],
            "daemon": [],
        }
        assert daemon.pids("same") == before["same"]
        assert {state["state"] for state in daemon.agents().values()} == {"RUNNING"}
        assert {name.partition(":")[0] for name in daemon.agents()} == {"same", "other", "new"}
        for pid, senders in (*before["other"].values(), *before["gone"].values()):
            for ended in (pid, *senders):
                wait_dead(ended)
        numbers = numbers_in(web.rootfs / "srv/same-in", sender.count)
        assert numbers == list(range(sender.count))
        put_into_spool(web.rootfs / "srv/new-out", [b"to the new one"])
        with Receiver(legacy, 0x81, 1) as receiver:
            assert [message.body for message in receiver.messages()] == [b"to the new one"]


@pytest.mark.timeout(300)
def test_50_reloads_under_load_lose_and_repeat_nothing(tmp_path: Path, unshare_container: Factory) -> None:
    """Every second one comes while the one before is still handing over."""
    web, legacy = unshare_container(), unshare_container()
    same = route("same", web, legacy, 0x51)
    batch, reloads = 60, 50
    bodies = [b"%d" % number for number in range(batch * reloads)]
    with (
        Reloadable(tmp_path, same + route("hot", web, legacy, 0x61)) as daemon,
        Receiver(legacy, 0x61, len(bodies)) as receiver,
    ):
        daemon.wait_for("RUNNING")
        neighbour, memory = daemon.pids("same"), _own_memory(daemon, "hot:files")
        with Sender(legacy, 0x52) as to_same, Sender(legacy, 0x62) as to_hot:
            for number in range(reloads):
                _put_numbered(web.rootfs / "srv/hot-out", bodies, number * batch, batch)
                hot = route("hot", web, legacy, 0x61, f"window = {{ messages = {100 + number} }}")
                plan = daemon.reload(same, hot, wait=number % 2 == 0)
                assert (plan["restart"], plan["unchanged"]) == (["hot"], ["same"])
        daemon.wait_for("RUNNING")
        assert [message.body for message in receiver.messages()] == bodies
        for name, sender in (("same", to_same), ("hot", to_hot)):
            numbers = numbers_in(web.rootfs / f"srv/{name}-in", sender.count)
            assert numbers == list(range(sender.count))
        assert daemon.pids("same") == neighbour
        grown = _own_memory(daemon, "hot:files") - memory
        print(f"{to_same.count} and {to_hot.count} messages; an agent's own memory has grown by {grown >> 10} KiB")
        assert grown < 4 << 20, "agents that were forked after reloads share their memory with the supervisor too"


def _put_numbered(directory: Path, bodies: list[bytes], start: int, count: int) -> None:
    for number in range(start, start + count):
        hidden = directory / f".{number}"
        hidden.write_bytes(bodies[number])
        hidden.rename(directory / f"{number:08d}")


def _own_memory(daemon: Reloadable, name: str) -> int:
    own: int = psutil.Process(daemon.agents()[name]["pid"]).memory_full_info().uss
    return own


def test_a_route_that_returns_under_load_resumes_where_it_stood(tmp_path: Path, unshare_container: Factory) -> None:
    """Nothing lost, nothing repeated; half of the times it is back before it has gone."""
    web, legacy = unshare_container(), unshare_container()
    there, key = route("r", web, legacy, 0x51), 0x52
    with Reloadable(tmp_path, there) as daemon, Sender(legacy, key) as sender:
        for number in range(20):
            daemon.wait_for("RUNNING", "r:files", "r:queue")
            assert daemon.reload(wait=number % 2 == 0)["stop"] == ["r"]
            assert daemon.reload(there)["start"] == ["r"]
        sender.end()
        numbers = numbers_in(web.rootfs / "srv/r-in", sender.count)
        assert numbers == list(range(sender.count))
        daemon.wait_delivered("r:queue", sender.count)


def test_a_queue_that_changes_routes_under_load_has_one_taker(tmp_path: Path, unshare_container: Factory) -> None:
    """Each message reaches one of the two, in order; the events show that one ended before the other began."""
    legacy = unshare_container()
    webs = {"a": unshare_container(), "b": unshare_container()}
    with Reloadable(tmp_path, route("a", webs["a"], legacy, 0x51)) as daemon, Sender(legacy, 0x52) as sender:
        for turn in range(10):
            name = "ba"[turn % 2]
            daemon.wait_for("RUNNING")
            plan = daemon.reload(route(name, webs[name], legacy, 0x51), wait=turn % 3 > 0)
            assert plan["start"] == [name]
            wait_until(lambda there=f"{name}:queue": there in daemon.agents(), f"{name} is there")  # type: ignore[misc]
        daemon.wait_for("RUNNING")
        sender.end()
        spools = [web.rootfs / f"srv/{name}-in" for name, web in webs.items()]
        wait_until(lambda: sum(len(os.listdir(spool)) for spool in spools) >= sender.count, "all have come")
        received = [numbers_in(spool, 1) for spool in spools]
        assert all(numbers == sorted(numbers) for numbers in received)
        assert sorted(received[0] + received[1]) == list(range(sender.count))
        assert _most_at_once(daemon.events(), "queue") == 1


def _most_at_once(events: list[dict[str, str]], agent: str) -> int:
    """Return how many agents of that name in a route were not stopped at the same time."""
    alive: set[str] = set()
    most = 0
    for event in events:
        if event["event"] == "state" and event["name"].endswith(f":{agent}"):
            (alive.discard if event["to"] == "STOPPED" else alive.add)(event["name"])
            most = max(most, len(alive))
    return most


def test_undelivered_messages_of_a_removed_route_stay(tmp_path: Path, unshare_container: Factory) -> None:
    """The sink's queue is full, so a route that goes takes its whole limit; control calls meet it on its way."""
    web, legacy = unshare_container(), unshare_container()
    both = [route("full", web, legacy, 0x51), route("other", web, legacy, 0x61)]
    bodies = [b"%03d" % number + bytes(1000) for number in range(200)]
    with Reloadable(tmp_path, "".join(both)) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/full-out", bodies)
        wait_until(lambda: "queue full" in daemon.agents()["full:queue"]["detail"], "its queue is full")
        assert daemon.reload(both[1], wait=False)["stop"] == ["full"]
        assert daemon.agents()["full:files"]["state"] == "STOPPING"
        with pytest.raises(NsbridgeError, match="was taken out of the configuration"):
            daemon.call("start", names=["full"])
        changed = route("other", web, legacy, 0x61, DIFFERENT)
        plan = daemon.reload(changed, wait=False)  # in the same container: it has to wait for the one that goes
        assert (plan["stop"], plan["restart"]) == ([], ["other"])
        daemon.call("stop", names=["other:files"])
        daemon.call("restart", names=["other:queue"], wait=True)
        agents = daemon.agents()
        assert {name: state["state"] for name, state in agents.items()} == {
            "other:files": "STOPPED",
            "other:queue": "RUNNING",
        }, "what people wanted meanwhile counts for the one that follows"
        assert "to be delivered when it runs again" in daemon.said()
        with Receiver(legacy, 0x51, len(bodies)) as receiver:
            daemon.reload(*both)
            assert [message.body for message in receiver.messages()] == bodies


def test_a_daemon_is_stopped_while_a_reload_is_handing_over(tmp_path: Path, unshare_container: Factory) -> None:
    """It starts nothing any more, refuses another reload, and ends within its limit."""
    web, legacy = unshare_container(), unshare_container()
    bodies = [bytes(1000)] * 100
    with Reloadable(tmp_path, route("full", web, legacy, 0x51)) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/full-out", bodies)
        wait_until(lambda: "queue full" in daemon.agents()["full:queue"]["detail"], "its queue is full")
        daemon.reload(route("full", web, legacy, 0x51, DIFFERENT), route("new", web, legacy, 0x61), wait=False)
        daemon.call("shutdown")
        with pytest.raises(NsbridgeError, match="the daemon is stopping"):
            daemon.call("reload")
        daemon.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]  # it is started
        assert daemon.process.wait(30) == 0  # type: ignore[union-attr]
        assert "ready: " not in daemon.said().partition("reload: ")[2]


def test_hup_reloads_and_a_broken_file_changes_nothing(tmp_path: Path, unshare_container: Factory) -> None:
    web, legacy = unshare_container(), unshare_container()
    one, two = route("one", web, legacy, 0x51), route("two", web, legacy, 0x61)
    with Reloadable(tmp_path, one) as daemon:
        daemon.wait_for("RUNNING")
        before = daemon.pids("one")
        daemon.write(one, two)
        assert daemon.call("reload", dry_run=True)["start"] == ["two"]
        daemon.write(one.replace("create", "creat"), two.replace("[route.two]\n", "[route.two]\nwindo = 1\n"))
        with pytest.raises(NsbridgeError) as error:
            daemon.call("reload")
        assert error.value.exit_code == EXIT_USAGE
        lines = str(error.value).splitlines()
        assert [line.split(": ")[1] for line in lines] == ["route.one.agent.queue.queue.creat", "route.two.windo"]
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: daemon.said().count("nothing was changed") == 2, "HUP says the same in the log")
        assert all(daemon.said().count(line) == 2 for line in lines)
        assert list(daemon.agents()) == ["one:files", "one:queue"]
        daemon.write(one, two)
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: "two:queue" in daemon.agents(), "HUP has brought the new route")
        daemon.wait_for("RUNNING")
        assert daemon.pids("one") == before


def test_people_s_stop_and_a_fatal_state_meet_a_changed_route(tmp_path: Path, unshare_container: Factory) -> None:
    """Stopped agents stay so; a FATAL one is tried again, because a person has fixed the cause."""
    web, legacy = unshare_container(), unshare_container()
    stopped = route("stopped", web, legacy, 0x51)
    wrong = route("wrong", web, legacy, 0x61).replace(f'"{web.spec}"', f'"ns:/proc/{os.getpid()}/ns/mnt"')
    with Reloadable(tmp_path, stopped + wrong) as daemon:
        daemon.wait_for("FATAL", "wrong:files")
        daemon.call("stop", names=["stopped"], wait=True)
        plan = daemon.reload(route("stopped", web, legacy, 0x51, DIFFERENT), route("wrong", web, legacy, 0x61))
        assert plan["restart"] == ["stopped", "wrong"]
        states = {name: state["state"] for name, state in daemon.agents().items()}
        assert states == {
            "stopped:files": "STOPPED",
            "stopped:queue": "STOPPED",
            "wrong:files": "RUNNING",
            "wrong:queue": "RUNNING",
        }


def test_200_reloads_leave_no_descriptor_and_no_memory_behind(tmp_path: Path, unshare_container: Factory) -> None:
    """Routes that change, go and come, one of them with agents in containers, the others waiting for theirs."""
    web, legacy = unshare_container(), unshare_container()
    absent = [_absent(number) for number in range(5)]
    with Reloadable(tmp_path, route("r", web, legacy, 0x51) + "".join(absent)) as daemon:
        daemon.wait_for("RUNNING", "r:files", "r:queue")
        process = psutil.Process(daemon.pid)
        early: tuple[int, int] = (0, 0)
        for number in range(200):
            live = route("r", web, legacy, 0x51, f"window = {{ messages = {8 + number // 20} }}")
            kept = absent[number % 2 :] if number < 199 else absent
            daemon.reload(live, *(text.replace("1024", str(1000 + number)) for text in kept))
            if number == 40:
                early = (process.num_fds(), process.memory_info().rss)
        wait_until(lambda: process.num_fds() <= early[0], "no descriptor is left, nor a caller's connection")
        memory = process.memory_info().rss
        print(f"resident {early[1] >> 10} → {memory >> 10} KiB")
        assert memory - early[1] < 4 << 20


def _absent(number: int) -> str:
    return (
        f"[route.x{number}]\nwindow = {{ messages = 1024 }}\n"
        f'[route.x{number}.agent.a]\ncontainer = "pidfile:/nonexistent/{number}"\nspool = {{ out = "/srv/out" }}\n'
        f'[route.x{number}.agent.b]\ncontainer = "runc:nobody"\nspool = {{ in = "/srv/in{number}" }}\n'
    )


MOVES: dict[str, tuple[str, str]] = {
    "the spool": ('out = "/srv/r-out"', 'out = "/srv/moved"'),
    "the queue": ("in = { key = 81 }", "in = { key = 97 }"),
    "from a spool to a file": (
        'spool = { out = "/srv/r-out", in = "/srv/r-in" }',
        'file = { out = "/srv/f", in = "/srv/g" }',
    ),
}


@pytest.mark.parametrize("what", MOVES)
def test_an_endpoint_that_moves_takes_and_gives_at_its_new_place(
    tmp_path: Path, unshare_container: Factory, what: str
) -> None:
    web, legacy = unshare_container(), unshare_container()
    old, new = MOVES[what]
    before = route("r", web, legacy, 0x51)
    assert old in before
    with Reloadable(tmp_path, before) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/r-out", [b"before"])
        _expect(legacy, 0x51, b"before")
        assert daemon.reload(before.replace(old, new))["restart"] == ["r"]
        if "file" in what:
            (web.rootfs / "srv/f").write_bytes(b"after")
        else:
            put_into_spool(web.rootfs / ("srv/moved" if "spool" in what else "srv/r-out"), [b"after"])
        _expect(legacy, 0x61 if "queue" in what else 0x51, b"after")


@pytest.mark.parametrize("what", ["the spool", "from a spool to a file"])
def test_a_source_moved_while_messages_wait_loses_none(tmp_path: Path, unshare_container: Factory, what: str) -> None:
    """The queue across is full, so they are pending as notes, which only the old place explains."""
    web, legacy = unshare_container(), unshare_container()
    before = route("r", web, legacy, 0x51)
    bodies = [b"%03d" % number + bytes(4000) for number in range(50)]
    with Reloadable(tmp_path, before) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/r-out", bodies)
        wait_until(lambda: "queue full" in daemon.agents()["r:queue"]["detail"], "its queue is full")
        daemon.reload(before.replace(*MOVES[what]), wait=False)
        daemon.wait_for("FATAL", "r:files")
        assert "another kind or place are not delivered yet" in daemon.agents()["r:files"]["detail"]
        daemon.reload(before)
        with Receiver(legacy, 0x51, len(bodies)) as receiver:
            assert [message.body for message in receiver.messages()] == bodies


def _expect(container: EngineContainer, key: int, body: bytes) -> None:
    with Receiver(container, key, 1) as receiver:
        assert [message.body for message in receiver.messages()] == [body]


def test_events_are_followed_as_they_happen(tmp_path: Path, unshare_container: Factory) -> None:
    """From first to last of a restart, in order, each once."""
    web, legacy = unshare_container(), unshare_container()
    with Reloadable(tmp_path, route("r", web, legacy, 0x51)) as daemon:
        daemon.wait_for("RUNNING")
        with daemon.following("r:files") as events:
            daemon.call("restart", names=["r"], wait=True)
            heard = [next(events) for _ in range(4)]
        changes: list[Any] = [(event["name"], event["event"], event["from"], event["to"]) for event in heard]
        assert changes == [
            ("r:files", "state", "RUNNING", "STOPPING"),
            ("r:files", "state", "STOPPING", "STOPPED"),
            ("r:files", "state", "STOPPED", "STARTING"),
            ("r:files", "state", "STARTING", "RUNNING"),
        ]
        daemon.reload(route("r", web, legacy, 0x51, DIFFERENT))
        kinds = [event["event"] for event in daemon.events()]
        assert kinds[0] == "daemon"
        assert kinds.count("reload") == 1
