"""The `nats` endpoint and a server that has lost messages which it had confirmed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.system.conftest import Factory
from tests.system.nats_servers import NatsClient, NatsServer, running
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until
from tests.system.test_nats import bodies_in, delivered, put_into_spool, route, wait_for_detail


def publish(client: NatsClient, *ids: str) -> None:
    """Publish messages as a nsbridge does, with these ids."""
    for one in ids:
        client.publish("from.far", [one.encode()], headers={"Nats-Msg-Id": one})


def begin(daemon: Nsbridged, server: NatsServer, out: Path) -> None:
    """Make the streams, and move the first two messages."""
    daemon.wait_for("RUNNING")
    with NatsClient(server.url) as client:
        client.add_stream("TO", ["to.far"])
        client.add_stream("FROM", ["from.far"])
        move(daemon, client, out, [b"1", b"2"])


def test_server_that_lost_messages_is_waited_for(tmp_path: Path, unshare_container: Factory) -> None:
    """Its store is replaced by an older one, as if a server without the last messages became the leader."""
    box = unshare_container()
    with running(tmp_path / "nats") as server:
        store, old, new = server.directory / "store", tmp_path / "old", tmp_path / "new"
        with Nsbridged(tmp_path, route(box.spec, server.url)) as daemon:
            begin(daemon, server, box.rootfs / "srv/out")
            replace(server, store, old, None)
            with NatsClient(server.url) as client:
                move(daemon, client, box.rootfs / "srv/out", [b"3", b"4"], before=2)
            replace(server, store, new, old)
            put_into_spool(box.rootfs / "srv/out", [b"5"], 9)
            wait_for_detail(
                daemon,
                "stream TO ends with message 2, and the server has confirmed message 4",
                "stream FROM ends with message 2, and message 4 was taken",
                "nats stream cluster step-down",
            )
            replace(server, store, tmp_path / "bad", new)
            delivered(daemon, "n:box", 5)
            with NatsClient(server.url) as client:
                assert client.bodies("TO") == [b"1", b"2", b"3", b"4", b"5"]
                publish(client, "a-1")
            delivered(daemon, "n:far", 5)
            assert bodies_in(box) == [b"1", b"2", b"3", b"4", b"a-1"]


def test_route_may_continue_without_what_a_server_lost(tmp_path: Path, unshare_container: Factory) -> None:
    box = unshare_container()
    with running(tmp_path / "nats") as server:
        store, old = server.directory / "store", tmp_path / "old"
        with Nsbridged(tmp_path, route(box.spec, server.url, 'lost = "skip"\n')) as daemon:
            begin(daemon, server, box.rootfs / "srv/out")
            replace(server, store, old, None)
            with NatsClient(server.url) as client:
                move(daemon, client, box.rootfs / "srv/out", [b"3", b"4"], before=2)
            replace(server, store, tmp_path / "new", old)
            with NatsClient(server.url) as client:
                move(daemon, client, box.rootfs / "srv/out", [b"5", b"6"], before=4)
                assert client.bodies("TO") == [b"1", b"2", b"5", b"6"]
            assert bodies_in(box) == [b"1", b"2", b"3", b"4", b"5", b"6"]
            said = daemon.said()
            assert "stream TO ends with message 2, and the server has confirmed message 4: a server of the" in said
            ends = ("ends with message 2, and message 4 was taken", "has another message 4 than the one that was taken")
            assert any(f"stream FROM {end}: a server of the cluster has lost messages" in said for end in ends)


def move(daemon: Nsbridged, client: NatsClient, out: Path, bodies: Sequence[bytes], before: int = 0) -> None:
    """Move messages both ways."""
    put_into_spool(out, bodies, before)
    client.publish("from.far", bodies)
    for source in ("n:box", "n:far"):
        delivered(daemon, source, before + len(bodies))


def replace(server: NatsServer, store: Path, keep: Path, by: Path | None) -> None:
    """Kill the server, keep a copy of its store, put another one in its place, and start the server again."""
    server.kill()
    shutil.copytree(store, keep)
    if by is not None:
        shutil.rmtree(store)
        shutil.copytree(by, store)
    server.start()
    server.wait()


def test_hole_stops_a_route_until_it_may_skip_it(tmp_path: Path, unshare_container: Factory) -> None:
    """A message of nsbridge shows which one was before it. What a limit or a person deleted is only logged."""
    box = unshare_container()
    with running(tmp_path / "nats") as server, NatsClient(server.url) as client:
        client.add_stream("TO", ["to.far"])
        client.add_stream("FROM", ["from.far"])
        publish(client, "a-1", "a-2", "a-3", "a-6")
        client.run(client.js.delete_msg("FROM", 2))
        config = route(box.spec, server.url)
        with Nsbridged(tmp_path, config) as daemon:
            delivered(daemon, "n:far", 2)
            hole = "stream FROM lacks messages from 000000000000000a-4 to 000000000000000a-5, before its message 4"
            wait_for_detail(daemon, hole, 'lost = "skip" continues without them')
            assert "lacks messages from 000000000000000a-2 to 000000000000000a-2" in daemon.said()
            daemon.call("restart", names=["n:far"])
            daemon.wait_for("RUNNING")
            wait_for_detail(daemon, hole)
            text = daemon.config.read_text(encoding="utf-8")
            daemon.config.write_text(f'{text}\nlost = "skip"\n', encoding="utf-8")
            daemon.call("reload")
            delivered(daemon, "n:far", 3)
            wait_until(lambda: daemon.said().count(hole) >= 1 and "ERROR" in daemon.said(), "it is logged")
            assert bodies_in(box) == [b"a-1", b"a-3", b"a-6"]
