"""The `nats` endpoint with real nats-servers and real containers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.nats_servers import NatsClient, running
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import wait_until
from tests.system.traffic import Receiver, Sent, send_all, visible

BODIES = [b"", b"one", b"caf\xc3\xa9 \xff\n\0", *(b"%d" % number for number in range(500))]


def route(container: str, url: str, more: str = "", keys: str = "") -> str:
    """Return a route between a container's spools and two subjects."""
    return (
        f'[route.n]\n{keys}\n[route.n.agent.box]\ncontainer = "{container}"\n'
        'spool = { out = "/srv/out", in = "/srv/in" }\n'
        f'[route.n.agent.far]\ncontainer = "host"\n[route.n.agent.far.nats]\nservers = ["{url}"]\n'
        'in = { subject = "to.far" }\n'
        f'out = {{ stream = "FROM", subject = "from.far", durable = "n" }}\n{more}\n'
    )


def put_into_spool(directory: Path, bodies: Sequence[bytes], part: int = 0) -> None:
    """Put one file each, named in order."""
    for number, body in enumerate(bodies):
        (directory / ".part").write_bytes(body)
        (directory / ".part").rename(directory / f"{part}-{number:08d}")


def bodies_in(box: EngineContainer) -> list[bytes]:
    """Return the messages in the container's spool, in order."""
    directory = box.rootfs / "srv/in"
    return [(directory / name).read_bytes() for name in sorted(visible(directory))]


def test_messages_travel_both_ways_and_survive_kills(tmp_path: Path, unshare_container: Factory) -> None:
    box = unshare_container()
    with running(tmp_path / "nats") as server, NatsClient(server.url) as client:
        client.add_stream("TO", ["to.far"])
        client.add_stream("FROM", ["from.far"])
        (tmp_path / "d").mkdir()
        with Nsbridged(tmp_path / "d", route(box.spec, server.url)) as daemon:
            daemon.wait_for("RUNNING")
            half = len(BODIES) // 2
            for part, bodies in enumerate((BODIES[:half], BODIES[half:])):
                put_into_spool(box.rootfs / "srv/out", bodies, part)
                client.publish("from.far", bodies)
                kill_and_wait(daemon.agents()["n:far"]["pid"])
                daemon.wait_for("RUNNING")
            wait_until(lambda: daemon.flow("n:box")["delivered"] == len(BODIES), "all are published")
            wait_until(lambda: daemon.flow("n:far")["delivered"] == len(BODIES), "all are taken")
            assert client.bodies("TO") == BODIES
            assert sorted(bodies_in(box)) == sorted(BODIES)


def wait_for_detail(daemon: Nsbridged, *parts: str) -> None:
    """Wait until status shows all of this for the agent of NATS."""
    wait_until(lambda: all(part in daemon.agents()["n:far"]["detail"] for part in parts), f"{parts}")


def delivered(daemon: Nsbridged, source: str, count: int) -> None:
    """Wait until so many messages are delivered."""
    wait_until(lambda: daemon.flow(source)["delivered"] == count, f"{count} messages of {source}")


def test_reasons_of_a_stream_that_cannot_be_used_are_shown(tmp_path: Path, unshare_container: Factory) -> None:
    """It is missing, has the wrong retention, is full; nothing is lost, and the route continues by itself."""
    box = unshare_container()
    with (
        running(tmp_path / "nats") as server,
        NatsClient(server.url) as client,
        Nsbridged(tmp_path, route(box.spec, server.url)) as daemon,
    ):
        daemon.wait_for("RUNNING")
        put_into_spool(box.rootfs / "srv/out", BODIES[:20])
        wait_for_detail(daemon, "no stream takes the subject to.far", "stream FROM is not there")
        client.add_stream("TO", ["to.far"], retention="workqueue")
        client.add_stream("FROM", ["from.far"])
        wait_for_detail(daemon, "stream TO has the retention workqueue")
        assert client.run(client.js.delete_stream("TO"))
        client.add_stream("TO", ["to.far"], max_msgs=5, discard="new")
        wait_for_detail(daemon, "maximum messages exceeded")
        assert client.bodies("TO") == BODIES[:5]
        client.run(client.js.update_stream(name="TO", subjects=["to.far"], max_msgs=-1, discard="new"))
        delivered(daemon, "n:box", 20)
        assert client.bodies("TO") == BODIES[:20]
        wait_until(lambda: daemon.agents()["n:far"]["detail"] == "", "nothing is blocked")


def test_message_that_is_too_long_becomes_a_dead_letter(tmp_path: Path, unshare_container: Factory) -> None:
    """The server's max_payload or the stream's limit refuses it."""
    box = unshare_container()
    with running(tmp_path / "nats", "max_payload: 100KB") as server, NatsClient(server.url) as client:
        client.add_stream("TO", ["to.far"], max_msg_size=50_000)
        client.add_stream("FROM", ["from.far"])
        with Nsbridged(tmp_path, route(box.spec, server.url)) as daemon:
            daemon.wait_for("RUNNING")
            bodies = [b"one", b"x" * 200_000, b"two", b"y" * 60_000, b"z" * 49_000]
            put_into_spool(box.rootfs / "srv/out", bodies)
            delivered(daemon, "n:box", 3)
            assert client.bodies("TO") == [b"one", b"two", b"z" * 49_000]
            assert daemon.flow("n:box")["dead"] == 2
            notes = [path.read_text() for path in (tmp_path / "state/dead/n/far").glob("*.json")]
            assert all("max_payload" in note for note in notes)
            assert len(notes) == 2


def test_others_may_publish_to_the_stream_and_the_subject(tmp_path: Path, unshare_container: Factory) -> None:
    """Their messages between ours break the chain of those in flight, and cost time only, also at a kill."""
    box = unshare_container()
    with running(tmp_path / "nats") as server, NatsClient(server.url) as client:
        client.add_stream("TO", ["to.*"])
        client.add_stream("FROM", ["from.far"])
        with Nsbridged(tmp_path, route(box.spec, server.url)) as daemon:
            daemon.wait_for("RUNNING")
            ours = [b"ours %d" % number for number in range(400)]
            for part in range(4):
                put_into_spool(box.rootfs / "srv/out", ours[100 * part : 100 * part + 100], part)
                client.publish("to.far", [b"theirs"] * 50)
                client.publish("to.near", [b"theirs too"] * 50)
                kill_and_wait(daemon.agents()["n:far"]["pid"])
                client.publish("to.far", [b"theirs"] * 5)
                daemon.wait_for("RUNNING")
            delivered(daemon, "n:box", 400)
            found = client.bodies("TO")
            assert [body for body in found if body.startswith(b"ours")] == ours
            assert daemon.flow("n:box")["in_doubt"] == 0


def test_messages_of_a_lost_connection_keep_their_order(tmp_path: Path, unshare_container: Factory) -> None:
    """Another client of the consumer has taken some and does not acknowledge them: the stream has them."""
    box = unshare_container()
    with running(tmp_path / "nats") as server, NatsClient(server.url) as client:
        client.add_stream("TO", ["to.far"])
        client.add_stream("FROM", ["from.*"], retention="workqueue")
        with Nsbridged(tmp_path, route(box.spec, server.url)) as daemon:
            daemon.wait_for("RUNNING")
            client.publish("from.far", BODIES[:10])
            delivered(daemon, "n:far", 10)
            daemon.stop()

            def waits() -> int:
                return int(client.run(client.js.consumer_info("FROM", "n")).num_waiting or 0)

            wait_until(lambda: not waits(), "the server has forgotten the agent's request")
            client.publish("from.far", BODIES[10:60])
            subscription = client.run(client.js.pull_subscribe("from.far", durable="n", stream="FROM"))
            assert [one.data for one in client.run(subscription.fetch(20))] == BODIES[10:30]
            daemon.start()
            delivered(daemon, "n:far", 60)
            assert bodies_in(box) == BODIES[:60]
            client.publish("from.far", BODIES[60:61])
            delivered(daemon, "n:far", 61)

        def is_acknowledged() -> bool:
            return client.run(client.js.stream_info("FROM")).state.messages <= 20

        wait_until(is_acknowledged, "all but what the other client holds is acknowledged")


def test_deleted_consumer_is_made_again_at_its_old_place(tmp_path: Path, unshare_container: Factory) -> None:
    """The agent does not ask again for messages that it has; it takes those that come meanwhile."""
    box = unshare_container()
    with running(tmp_path / "nats") as server, NatsClient(server.url) as client:
        client.add_stream("TO", ["to.far"])
        client.add_stream("FROM", ["from.far"])
        with Nsbridged(tmp_path, route(box.spec, server.url)) as daemon:
            daemon.wait_for("RUNNING")
            client.publish("from.far", BODIES[:100])
            delivered(daemon, "n:far", 100)
            client.run(client.js.delete_consumer("FROM", "n"))
            client.publish("from.far", BODIES[100:150])
            delivered(daemon, "n:far", 150)
            config = client.run(client.js.consumer_info("FROM", "n")).config
            assert 101 <= (config.opt_start_seq or 0) <= 151
            assert bodies_in(box) == BODIES[:150]


def test_types_of_a_queue_travel_through_nats(tmp_path: Path, unshare_container: Factory) -> None:
    one, two = unshare_container(), unshare_container()
    with running(tmp_path / "nats") as server, NatsClient(server.url) as client:
        client.add_stream("T", ["t"])
        far = f'container = "host"\n[route.{{name}}.agent.far.nats]\nservers = ["{server.url}"]\n'
        routes = (
            f'[route.a.agent.box]\ncontainer = "{one.spec}"\nqueue = {{ out = {{ key = 0x81 }}, create = true }}\n'
            f'[route.a.agent.far]\n{far.format(name="a")}in = {{ subject = "t" }}\n'
            f'[route.b.agent.box]\ncontainer = "{two.spec}"\nqueue = {{ in = {{ key = 0x82 }}, create = true }}\n'
            f'[route.b.agent.far]\n{far.format(name="b")}out = {{ stream = "T", subject = "t", durable = "d" }}\n'
        )
        messages = [Sent(number % 5 + 1, b"%d" % number) for number in range(200)]
        with Nsbridged(tmp_path, routes) as daemon, Receiver(two, 0x82, len(messages)) as receiver:
            daemon.wait_for("RUNNING")
            send_all(one, 0x81, messages)
            assert receiver.messages() == messages


def test_messages_that_the_consumer_has_skipped_are_taken(tmp_path: Path, unshare_container: Factory) -> None:
    """After an election in a cluster a consumer may have them acknowledged. The stream has them."""
    box = unshare_container()
    with running(tmp_path / "nats") as server, NatsClient(server.url) as client:
        client.add_stream("TO", ["to.far"])
        client.add_stream("FROM", ["from.far"])
        with Nsbridged(tmp_path, route(box.spec, server.url)) as daemon:
            daemon.wait_for("RUNNING")
            client.publish("from.far", BODIES[:10])
            delivered(daemon, "n:far", 10)
            daemon.stop()
            client.publish("from.far", BODIES[10:60])
            subscription = client.run(client.js.pull_subscribe("from.far", durable="n", stream="FROM"))
            fetched = client.run(subscription.fetch(50))
            assert [one.data for one in fetched] == BODIES[10:60]
            for one in fetched:
                client.run(one.ack())
            client.run(client.client.flush())
            daemon.start()
            delivered(daemon, "n:far", 60)
            assert bodies_in(box) == BODIES[:60]
