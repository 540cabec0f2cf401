"""Mistakes of a new operator that would look healthy, and reasons that would come late or twice."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from nsbridge.agents.endpoints.unused import AFTER
from tests.posix_queue import PosixQueue
from tests.system.conftest import Factory
from tests.system.engines import EngineContainer
from tests.system.nsbridged import Nsbridged
from tests.system.room import run, wait_until
from tests.system.test_queue_faults import in_ipc
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool, send_all, wait_for_files


def test_dry_run_warns_of_an_unknown_container(tmp_path: Path, runc_container: Factory) -> None:
    """A typo in a name is valid, and the agent would wait for that container."""
    web, legacy = runc_container(), runc_container()
    with Nsbridged(tmp_path, route(web.spec, legacy.spec)) as daemon:
        daemon.wait_for("RUNNING")
        text = daemon.config.read_text(encoding="utf-8")
        daemon.config.write_text(text.replace(legacy.spec, f"{legacy.spec}x"), encoding="utf-8")
        plan = daemon.call("reload", dry_run=True)
        name = legacy.spec.removeprefix("runc:")
        (warning,) = plan["warnings"]
        assert warning.startswith(f"runc knows no container {name}x (yet); it knows {name}, ")
        assert web.spec.removeprefix("runc:") in warning
        assert plan["restart"] == ["r"]
        daemon.config.write_text(text, encoding="utf-8")
        assert daemon.call("reload", dry_run=True)["warnings"] == []


def test_reason_is_logged_within_a_second(tmp_path: Path, unshare_container: Factory) -> None:
    """In status, log and events; one reason for both keys, at one place of the line."""
    web, legacy = unshare_container(), unshare_container()
    routes = route(web.spec, legacy.spec).replace(", create = true", "").replace("/srv/", "/srv/late/")
    queues = f"no queue 0x52 and 0x51 in {legacy.spec}: is the key right, has the program started?"
    spools = f"create /srv/late in {web.spec}; nsbridge then makes out and in"
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        for name, reason in (("r:queue", queues), ("r:files", spools)):
            wait_until(lambda: reason in daemon.agents()[name]["detail"], "status has the reason", 1.0)  # noqa: B023
            wait_until(lambda: f"{name} blocked: {reason}" in daemon.said(), "the log has the reason", 1.0)  # noqa: B023
            detail = daemon.agents()[name]["detail"]
            assert detail.count("is the key right") + detail.count("create /srv/late") == 1
            events = [json.loads(line) for line in ctl(daemon, "events", "--json", name).splitlines()]
            assert [event["detail"] for event in events if event["event"] == "delivery"] == [detail[9:]]
            (line,) = [line for line in ctl(daemon, "status").splitlines() if line.startswith(name)]
            assert line.endswith(f"  {detail}")
            assert line.count(reason[:12]) == 1


def ctl(daemon: Nsbridged, *words: str) -> str:
    """Return what nsbridgectl prints."""
    command = [sys.executable, "-m", "nsbridge.supervisor.cli.nsbridgectl", "-s", str(daemon.socket), *words]
    return run(command, check=False).stdout.decode()


POSIX = """
[route.m.agent.files]
container = "{web}"
spool = {{ out = "/srv/m-out", in = "/srv/m-in" }}
[route.m.agent.queue]
container = "{legacy}"
mqueue = {{ in = {{ name = "/0x51" }}, out = {{ name = "/0x52" }}, create = true }}
"""


class WrongKeys(NamedTuple):
    """A daemon whose queues no program uses: of SysV in the route `r`, POSIX ones in `m`."""

    daemon: Nsbridged
    web: EngineContainer
    legacy: EngineContainer

    def shown(self, agent: str) -> str:
        return str(self.daemon.agents()[agent]["detail"])

    def logged(self, agent: str, text: str) -> int:
        return self.daemon.said().count(f"WARNING {agent}:queue {text}")


@contextmanager
def wrong_keys(directory: Path, make: Factory, evidence: str) -> Iterator[WrongKeys]:
    directory.mkdir()
    web, legacy = make(), make()
    routes = route(web.spec, legacy.spec) + POSIX.format(web=web.spec, legacy=legacy.spec)
    with Nsbridged(directory, routes, f'evidence = "{evidence}"\nhealth = {{ deadline = "4s" }}') as daemon:
        daemon.wait_for("RUNNING")
        for spool in ("out", "m-out"):
            put_into_spool(web.rootfs / "srv" / spool, [b"into a void"] * 5)
        yield WrongKeys(daemon, web, legacy)


def test_wrong_key_with_create_is_reported(tmp_path: Path, unshare_container: Factory) -> None:
    """Queues are made, messages go into one, and no program uses them: the agents run all the same."""
    made = "was made by nsbridge and nobody has"
    with ExitStack() as running:
        scenes = [
            running.enter_context(wrong_keys(tmp_path / evidence, unshare_container, evidence))
            for evidence in ("auto", "senders")
        ]  # both wait at the same time
        for scene in scenes:
            for agent in ("r:queue", "m:queue"):
                wait_until(lambda: made in scene.shown(agent), f"{agent} is reported", AFTER + 10)  # noqa: B023
                wait_until(lambda: "5 messages wait there" in scene.shown(agent), "they are counted", 10)  # noqa: B023
                assert scene.daemon.agents()[agent]["state"] == "RUNNING"
            assert scene.logged("r", f"queue 0x51 {made} read from it: ") == 1
            assert scene.logged("m", f"POSIX queue /0x51 {made} read from it: ") == 1
            wait_until(lambda: scene.logged("r", f"queue 0x52 {made} written to it: is the key right?"), "the other")  # noqa: B023
            wait_until(lambda: scene.logged("m", f"POSIX queue /0x52 {made} written to it: is the name"), "the other")  # noqa: B023
            with Receiver(scene.legacy, 0x51, 5) as receiver:
                receiver.messages()
            send_all(scene.legacy, 0x52, [Sent(1, b"an answer")])
            in_ipc(scene.legacy, use_posix_queues)
            for agent in ("r:queue", "m:queue"):
                wait_until(lambda: scene.shown(agent) == "", "both are used", 10)  # noqa: B023


def use_posix_queues() -> None:
    with PosixQueue("/0x51", is_waiting=False) as queue:
        assert queue.drained() == [(b"into a void", 0)] * 5
    with PosixQueue("/0x52", is_waiting=False) as queue:
        queue.send(b"an answer")


def test_restart_with_wait_says_blocked_and_why(tmp_path: Path, unshare_container: Factory) -> None:
    """RUNNING alone would look healthy. The reason is there as soon as the agent runs."""
    web, legacy = unshare_container(), unshare_container()
    routes = route(web.spec, legacy.spec).replace(", create = true", "").replace("/srv/", "/srv/late/")
    with Nsbridged(tmp_path, routes) as daemon:
        daemon.wait_for("RUNNING")
        for _ in range(3):
            files, queue = ctl(daemon, "restart", "--wait", "r").splitlines()
            assert re.match(r"r:files +RUNNING +blocked: create /srv/late in ", files), files
            assert re.match(r"r:queue +RUNNING +blocked: no queue 0x52 and 0x51 in ", queue), queue


def test_unwritable_spool_is_reported_at_the_start(tmp_path: Path, unshare_container: Factory) -> None:
    """Their owner may read both, and write neither: before any message comes. It ends when the modes are right."""
    web, legacy = unshare_container(), unshare_container()
    places = [web.rootfs / "srv/out", web.rootfs / "srv/in"]
    for place in places:
        place.mkdir()
        os.chown(place, 1000, 1000)
        place.chmod(0o555)
    with Nsbridged(tmp_path, route(web.spec, legacy.spec), 'health = { deadline = "4s" }') as daemon:
        daemon.wait_for("RUNNING")
        refused = "Permission denied for uid 1000 gid 1000 (set user on the agent, or the owner in the container)"
        assert daemon.agents()["r:files"]["detail"] == f"blocked: /srv/in: {refused}"
        wait_until(lambda: f"/srv/out: {refused}: files cannot be removed" in daemon.said(), "and the other", 1.0)
        places[1].chmod(0o755)
        wait_until(lambda: daemon.agents()["r:files"]["phase"] == "idle", "it resumes by itself", 2.0)
        assert (
            daemon.agents()["r:files"]["detail"] == f"/srv/out: {refused}: files cannot be removed after their delivery"
        )
        places[0].chmod(0o755)
        wait_until(lambda: daemon.agents()["r:files"]["detail"] == "", "the notice ends", 5.0)
        send_all(legacy, 0x52, [Sent(1, b"it works")])
        assert [file.read_bytes() for file in wait_for_files(places[1], 1)] == [b"it works"]
        assert sorted(os.listdir(places[0])) == []


def test_status_exits_3_once_blocked_for_long(tmp_path: Path, unshare_container: Factory) -> None:
    """A monitor that only looks at the exit code sees it after the grace time, and sees that it is over."""
    web, legacy = unshare_container(), unshare_container()
    routes = route(web.spec, legacy.spec).replace(", create = true", "")
    with Nsbridged(tmp_path, routes, 'health = { max_blocked = "2s" }') as daemon:
        daemon.wait_for("RUNNING")
        status = [sys.executable, "-m", "nsbridge.supervisor.cli.nsbridgectl", "-s", str(daemon.socket), "status"]
        assert run(status, check=False).returncode == 0, "within the grace time"
        wait_until(lambda: run(status, check=False).returncode == 3, "blocked for long", 10.0)
        with Receiver(legacy, 0x51, 0):  # makes the queue
            send_all(legacy, 0x52, [Sent(1, b"makes the other")])
            wait_until(lambda: run(status, check=False).returncode == 0, "it is over", 10.0)
