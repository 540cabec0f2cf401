"""Messages arrive: every pair of endpoints, real containers, byte for byte and in order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import wait_until
from tests.system.traffic import (
    Receiver,
    Sent,
    put_into_spool,
    random_messages,
    send_all,
    visible,
    wait_for_files,
)

SIZE = 20_000_000  # bytes


def route(files: str, queue: str) -> str:
    """Return a route `r` with a spool agent `r:files` and a queue agent `r:queue`."""
    return (
        f'[route.r]\n[route.r.agent.files]\ncontainer = "{files}"\nspool = {{ out = "/srv/out", in = "/srv/in" }}\n'
        f'[route.r.agent.queue]\ncontainer = "{queue}"\n'
        "queue = { in = { key = 0x51, type = 7 }, out = { key = 0x52 }, create = true }\n"
    )


def test_20_mb_of_spool_files_reach_a_queue_in_order(tmp_path: Path, runc_container: Factory) -> None:
    """Files of 1 B to 8 KB, most written while the daemon runs, some before it; each is gone once it is delivered."""
    web, legacy = runc_container(), runc_container()
    spool = web.rootfs / "srv/out"
    spool.mkdir()
    messages = random_messages(SIZE)
    put_into_spool(spool, messages[:100])
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon, Receiver(legacy, 0x51, len(messages)) as receiver:
        daemon.wait_for("RUNNING")
        for number, body in enumerate(messages[100:], 100):
            (spool / f".{number}").write_bytes(body)
            (spool / f".{number}").rename(spool / f"{number:08d} Grüße №.bin")
        assert receiver.messages() == [Sent(7, body) for body in messages]
        wait_until(lambda: not visible(spool), "delivered files are removed")
        wait_until(lambda: daemon.flow("r:files")["pending"] == 0, "nothing is pending")
        daemon.wait_delivered("r:files", len(messages))
        assert daemon.flow("r:files")["bytes"] == SIZE


def test_20_mb_of_queue_messages_reach_a_spool_in_order(tmp_path: Path, runc_container: Factory) -> None:
    """The files' names give order and type."""
    web, legacy = runc_container(), runc_container()
    messages = [Sent(1 + number % 3, body) for number, body in enumerate(random_messages(SIZE))]
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        send_all(legacy, 0x52, messages)
        files = wait_for_files(web.rootfs / "srv/in", len(messages))
        assert [Sent(int(file.suffix[1:]), file.read_bytes()) for file in files] == messages
        assert len({len(file.stem) for file in files}) == 1, "names of one width, so that their order is the messages'"


def test_queue_to_queue_keeps_bytes_types_and_order_both_ways(tmp_path: Path, runc_container: Factory) -> None:
    """Two ipc namespaces, the same keys in both."""
    one, two = runc_container(), runc_container()
    queue = "queue = {{ in = {{ key = 0x61 }}, out = {{ key = 0x62 }}, create = true }}\n"
    agent = '[route.q.agent.{}]\ncontainer = "{}"\n' + queue
    there = [Sent(1 + number % 5, body) for number, body in enumerate(random_messages(SIZE))]
    back = [Sent(9 - number % 5, body) for number, body in enumerate(random_messages(SIZE // 4, seed=3))]
    routes = "[route.q]\n" + agent.format("one", one.spec) + agent.format("two", two.spec)
    with (
        Nsbridged(tmp_path, routes) as daemon,
        Receiver(one, 0x61, len(back)) as at_one,
        Receiver(two, 0x61, len(there)) as at_two,
    ):
        daemon.wait_for("RUNNING")
        with ThreadPoolExecutor() as both:
            both.submit(send_all, one, 0x62, there)
            both.submit(send_all, two, 0x62, back)
        assert at_one.messages() == back
        assert at_two.messages() == there


def test_a_source_killed_with_a_full_window_takes_nothing_more(tmp_path: Path, unshare_container: Factory) -> None:
    """Empty messages come with the wait for a message. One too many, and the other agent would refuse them all."""
    one, two = unshare_container(), unshare_container()
    agent = '[route.q.agent.{}]\ncontainer = "{}"\nqueue = {{ {} = {{ key = 0x61 }}, create = true }}\n'
    routes = "[route.q]\nwindow = { messages = 8 }\n" + agent.format("one", one.spec, "out")
    sent = [Sent(1 + number, b"") for number in range(40)]
    with Nsbridged(tmp_path, routes + agent.format("two", two.spec, "in")) as daemon:
        daemon.wait_for("RUNNING")
        daemon.call("stop", names=["q:two"])
        daemon.wait_for("STOPPED", "q:two")
        send_all(one, 0x61, sent)
        wait_until(lambda: daemon.flow("q:one")["pending"] == 8, "the window is full")
        for restarts in range(1, 5):
            kill_and_wait(daemon.agents()["q:one"]["pid"])
            wait_until(lambda: daemon.agents()["q:one"]["restarts"] == restarts, "its death is noticed")  # noqa: B023
            daemon.wait_for("RUNNING", "q:one")
        assert daemon.flow("q:one")["pending"] == 8
        daemon.call("start", names=["q:two"])
        with Receiver(two, 0x61, len(sent)) as receiver:
            assert receiver.messages() == sent


def test_spool_to_spool_both_ways(tmp_path: Path, runc_container: Factory) -> None:
    """Two mount namespaces; also an empty message and one that is longer than a packet."""
    one, two = runc_container(), runc_container()
    agent = '[route.s.agent.{}]\ncontainer = "{}"\nspool = {{ out = "/srv/out", in = "/srv/in" }}\n'
    messages = [b"", b"x" * 3_000_000, *random_messages(SIZE)]
    routes = "[route.s]\n" + agent.format("one", one.spec) + agent.format("two", two.spec)
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        for source, sink in ((one, two), (two, one)):
            put_into_spool(source.rootfs / "srv/out", messages)
            files = wait_for_files(sink.rootfs / "srv/in", len(messages))
            assert [file.read_bytes() for file in files] == messages


def test_a_full_queue_holds_the_producer_back_and_loses_nothing(tmp_path: Path, runc_container: Factory) -> None:
    """The window bounds what is taken; status says why it waits; when the consumer comes, all arrives."""
    web, legacy = runc_container(), runc_container()
    routes = route(web.spec, legacy.spec).replace("[route.r]\n", "[route.r]\nwindow = { messages = 50 }\n", 1)
    messages = random_messages(1_000_000)
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        spool = web.rootfs / "srv/out"
        put_into_spool(spool, messages)
        wait_until(lambda: "queue full" in daemon.agents()["r:queue"]["detail"], "status says that the queue is full")
        assert daemon.agents()["r:queue"]["phase"] == "blocked"
        wait_until(lambda: daemon.flow("r:files")["pending"] == 50, "the window is full")
        assert len(visible(spool)) > len(messages) - 100, "what is not delivered stays in the spool"
        with Receiver(legacy, 0x51, len(messages)) as receiver:
            assert [message.body for message in receiver.messages()] == messages
        wait_until(lambda: not daemon.agents()["r:queue"]["detail"], "the reason goes away")


@pytest.mark.parametrize("kind", ["runc", "docker", "podman", "crun"])
def test_a_route_between_containers_of_each_engine(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """Named as that engine names them."""
    make: Factory = request.getfixturevalue(f"{kind}_container")
    web, legacy = make(), make()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon, Receiver(legacy, 0x51, 2) as receiver:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [b"one", b"two"])
        assert receiver.messages() == [Sent(7, b"one"), Sent(7, b"two")]
        send_all(legacy, 0x52, [Sent(3, b"back")])
        (file,) = wait_for_files(web.rootfs / "srv/in", 1)
        assert (file.read_bytes(), file.suffix) == (b"back", ".3")
