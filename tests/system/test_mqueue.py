"""POSIX queues of real containers: every pair, what hostile hands do to a queue, limits of the namespace, SIGKILL.

`make mqueue-storm` runs the long form of the storm.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.posix_queue import PosixQueue
from tests.system import mqueue_storm
from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.faults import says, says_nothing
from tests.system.nsbridged import Nsbridged
from tests.system.room import run, wait_until
from tests.system.storm_outcome import Plan
from tests.system.test_dead_letters import listed
from tests.system.test_hostile_queue import cpu
from tests.system.test_queue_faults import in_ipc
from tests.system.traffic import Receiver, Sent, put_into_spool, send_all, wait_for_files

OUT, IN = "/out", "/in"
AGENT, STRANGER = 1000, 4242  # users
BOTH = f'mqueue = {{ out = {{ name = "{OUT}" }}, in = {{ name = "{IN}" }} }}'


class Scene(NamedTuple):
    """A daemon with one route `r`: `r:q` serves POSIX queues, which hostile programs use too, and `r:f` a spool."""

    daemon: Nsbridged
    evil: EngineContainer
    files: EngineContainer

    def deliver(self, *bodies: bytes) -> None:
        """Leave files for the queue."""
        put_into_spool(self.files.rootfs / "srv/out", list(bodies))

    def do(self, then: Callable[[PosixQueue], object], name: str = IN) -> object:
        """Do something with a queue in the container's ipc namespace, as root."""

        def work() -> object:
            with PosixQueue(name, is_waiting=False) as queue:
                return then(queue)

        return in_ipc(self.evil, work)

    def taken(self, name: str = IN) -> list[list[object]]:
        """Return what is in a queue, as text and priority."""
        found = self.do(lambda queue: [[body.decode(), priority] for body, priority in queue.drained()], name)
        assert isinstance(found, list)
        return found

    def wait_for(self, *expected: list[object], name: str = IN) -> None:
        """Wait until these have come, in this order."""
        found: list[list[object]] = []

        def there() -> bool:
            found.extend(self.taken(name))
            return len(found) >= len(expected)

        wait_until(there, f"{expected} come: {found}")
        assert found == [*expected]

    def restarts(self) -> set[int]:
        """Return how often the agents were restarted."""
        return {agent["restarts"] for agent in self.daemon.agents().values()}


@contextmanager
def serve(
    tmp_path: Path, make: Factory, endpoint: str = BOTH, more: str = f'user = "{AGENT}:{AGENT}"', owner: int = AGENT
) -> Iterator[Scene]:
    """Serve a container whose queues belong to `owner`; with owner -1 there are none."""
    evil, files = make(), make()
    routes = (
        f'[route.r]\n[route.r.agent.f]\ncontainer = "{files.spec}"\nspool = {{ out = "/srv/out", in = "/srv/in" }}\n'
        f'[route.r.agent.q]\ncontainer = "{evil.spec}"\n{endpoint}\n{more}\n'
    )
    scene = Scene(Nsbridged(tmp_path, routes), evil, files)
    if owner >= 0:
        for name in (OUT, IN):
            scene.do(lambda queue: os.fchown(queue.fd, owner, owner), name)
    with scene.daemon as daemon:
        daemon.wait_for("RUNNING")
        yield scene


@pytest.fixture
def scene(tmp_path: Path, unshare_container: Factory) -> Iterator[Scene]:
    with serve(tmp_path, unshare_container) as made:
        yield made
        assert made.restarts() == {0}


def remake(queue: PosixQueue, *, mode: int = 0o666, max_messages: int = 10, max_message: int = 8192) -> None:
    """Remove a queue and make it again, for all users."""
    with suppress(FileNotFoundError):
        queue.unlink()
    PosixQueue(queue.name, mode=mode, max_messages=max_messages, max_message=max_message).close()


def set_limit(container: EngineContainer, name: str, value: int) -> None:
    """Set a limit of the container's ipc namespace."""
    write = f"echo {value} > /proc/sys/fs/mqueue/{name}"
    run(["nsenter", f"--target={container.pid}", "--ipc", "--", "sh", "-c", write])


# What passes


def test_priorities_and_types_pass_from_queue_to_queue(tmp_path: Path, unshare_container: Factory) -> None:
    """A priority becomes the type of a SysV queue, where 0 is none; a type beyond priorities is a dead letter."""
    posix, sysv = unshare_container(), unshare_container()
    routes = (
        f'[route.r]\n[route.r.agent.q]\ncontainer = "{posix.spec}"\n{BOTH}\n'
        f'[route.r.agent.s]\ncontainer = "{sysv.spec}"\n'
        "queue = { out = { key = 1 }, in = { key = 2 }, create = true }\n"
    )
    scene = Scene(Nsbridged(tmp_path, routes), posix, sysv)
    for name in (OUT, IN):
        scene.do(lambda queue: queue.send(b"low", 0), name)
        scene.do(lambda queue: queue.send(b"high", 32767), name)
    with scene.daemon as daemon:
        daemon.wait_for("RUNNING")
        with Receiver(sysv, 2, 2) as receiver:
            assert receiver.messages() == [Sent(32767, b"high"), Sent(1, b"low")]
        scene.wait_for(["high", 32767], ["low", 0])
        send_all(sysv, 1, [Sent(5, b"five"), Sent(32768, b"beyond"), Sent(1, b"one")])
        scene.wait_for(["five", 5], ["one", 1])
        assert [letter["why"] for letter in listed(daemon)] == [
            "its type is 32768, and a priority is at most 32767: set in.priority"
        ]


def test_other_users_of_a_queue_change_nothing(scene: Scene) -> None:
    """A stranger sends into the queue and reads from it while the agent is killed: the count is of its own calls."""
    for number in range(5):
        scene.do(lambda queue: queue.send(b"a stranger's", 9))
        scene.deliver(b"%d" % number)
        scene.wait_for(["a stranger's", 9], [str(number), 0])
    assert scene.daemon.flow("r:f")["in_doubt"] == 0


# Hostile hands


def test_full_queue_is_waited_for(scene: Scene) -> None:
    scene.deliver(*(b"%02d" % number for number in range(25)))
    says(scene.daemon, "r:q", "POSIX queue /in is full: 10 messages")
    scene.wait_for(*([f"{number:02d}", 0] for number in range(25)))
    says_nothing(scene.daemon, "r:q")


def test_full_queue_that_is_removed_is_left(scene: Scene) -> None:
    scene.deliver(*(b"%02d" % number for number in range(11)))
    says(scene.daemon, "r:q", "is full")
    scene.do(lambda queue: remake(queue, mode=0o666))
    scene.wait_for(["10", 0])


def test_removals_in_a_row_cost_two_lines(scene: Scene) -> None:
    """Messages that come meanwhile go into the queue of the moment; the agent idles, and is not restarted."""

    def again(queue: PosixQueue) -> None:
        for _ in range(300):
            remake(queue, mode=0o666)

    before = cpu(scene.daemon.agents()["r:q"]["pid"])
    for name in (OUT, IN):
        scene.do(again, name)
    assert cpu(scene.daemon.agents()["r:q"]["pid"]) - before < 1
    scene.do(lambda queue: queue.send(b"out", 3), OUT)
    wait_for_files(scene.files.rootfs / "srv/in", 1)
    scene.deliver(b"in")
    scene.wait_for(["in", 0])
    assert scene.daemon.said().count("was removed") <= 4


def test_messages_of_a_removed_queue_are_taken(tmp_path: Path, unshare_container: Factory) -> None:
    """Its name is gone, but it is open: what was sent before, and by programs that have it open, is taken."""
    with serve(tmp_path, unshare_container) as scene:

        def remove(queue: PosixQueue) -> None:
            for number in range(10):
                queue.send(b"%d" % number)
            queue.unlink()

        scene.do(remove, OUT)
        wait_for_files(scene.files.rootfs / "srv/in", 10)
        says(scene.daemon, "r:q", "no POSIX queue /out in pid:")
        scene.do(lambda queue: queue.send(b"new"), OUT)
        wait_for_files(scene.files.rootfs / "srv/in", 11)


def test_forbidden_queue_is_waited_for(scene: Scene) -> None:
    for name in (OUT, IN):
        scene.do(lambda queue: os.fchmod(queue.fd, 0), name)
    says(scene.daemon, "r:q", f"no permission for uid {AGENT} gid {AGENT}")
    scene.deliver(b"x")
    for name in (OUT, IN):
        scene.do(lambda queue: os.fchmod(queue.fd, 0o600), name)
    scene.wait_for(["x", 0])
    says_nothing(scene.daemon, "r:q")


def test_new_owner_is_followed_only_to_less_power(tmp_path: Path, unshare_container: Factory) -> None:
    """The agent enters again. From one unprivileged user to another a person has to decide."""
    with serve(tmp_path, unshare_container, more="", owner=0) as scene:
        for name in (OUT, IN):
            scene.do(lambda queue: os.fchown(queue.fd, AGENT, AGENT), name)
        wait_until(lambda: f" as {AGENT}:{AGENT}" in scene.daemon.said(), "it is the new owner")
        for name in (OUT, IN):
            scene.do(lambda queue: os.fchown(queue.fd, STRANGER, STRANGER), name)
        wait_until(lambda: scene.daemon.agents()["r:q"]["state"] == "FATAL", "it is not entered as another one")
        assert f'user = "{STRANGER}:{STRANGER}"' in scene.daemon.agents()["r:q"]["detail"]


def test_queue_made_again_for_shorter_messages_is_waited_for(scene: Scene) -> None:
    """A message that fits passes. Otherwise its container could turn every message into a dead letter."""
    scene.do(lambda queue: remake(queue, max_message=5, max_messages=2))
    scene.deliver(b"short", b"longer", b"last")
    scene.wait_for(["short", 0])
    says(scene.daemon, "r:q", "was made again with mq_msgsize = 5, and a message of 6 bytes waits")
    scene.do(lambda queue: remake(queue, max_message=6))
    scene.wait_for(["longer", 0], ["last", 0])
    assert listed(scene.daemon) == []


def test_too_long_messages_stay_in_the_queue(tmp_path: Path, unshare_container: Factory) -> None:
    endpoint = BOTH[:-2] + ", max_message = 5000 }"
    with serve(tmp_path, unshare_container, endpoint) as scene:
        says(scene.daemon, "r:q", "may have 8192 bytes (mq_msgsize), more than max_message = 5000 of this agent")
        scene.do(lambda queue: remake(queue, max_message=5000, mode=0o666), OUT)
        scene.do(lambda queue: queue.send(b"x" * 5000, 1), OUT)
        wait_for_files(scene.files.rootfs / "srv/in", 1)


# Limits


def test_limits_of_the_namespace_are_named(tmp_path: Path, unshare_container: Factory) -> None:
    """The agent is no root, so that they hold for it."""
    endpoint = BOTH[:-2] + ', create = true, mode = "0604", max_messages = 11 }'
    with serve(tmp_path, unshare_container, endpoint, owner=-1) as scene:
        says(scene.daemon, "r:q", "is more than fs.mqueue.msg_max or fs.mqueue.msgsize_max of its ipc namespace allows")
        set_limit(scene.evil, "queues_max", 0)
        set_limit(scene.evil, "msg_max", 11)
        says(scene.daemon, "r:q", "as many queues as fs.mqueue.queues_max allows")
        set_limit(scene.evil, "queues_max", 2)
        says_nothing(scene.daemon, "r:q")
        made = scene.do(
            lambda queue: [os.fstat(queue.fd).st_mode & 0o777, os.fstat(queue.fd).st_uid, queue.max_messages]
        )
        assert made == [0o604, AGENT, 11]
        assert scene.restarts() == {0}


# SIGKILL


@pytest.mark.alone  # it makes the load itself
@pytest.mark.parametrize("plan", mqueue_storm.plans(15, 0, 18), ids=str)
def test_kills_lose_and_repeat_no_message(plan: Plan) -> None:
    """Both directions at full load, with a queue, a spool and a POSIX queue across; priorities are kept."""
    outcome = mqueue_storm.run(plan)
    assert outcome.problems() == []
    assert outcome.strikes.total() >= plan.strikes
