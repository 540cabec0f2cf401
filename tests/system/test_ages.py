"""Ages of a real daemon's messages and blockages: through kills and restarts, and what is reported without polling."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import wait_until
from tests.system.traffic import Receiver, put_into_spool

WHOLE = 1.0  # seconds; the journal keeps an age in whole ones


def reported(daemon: Nsbridged) -> list[dict[str, Any]]:
    """Return the events of kind `blocked`, as nsbridgectl prints them."""
    ctl = Path(sys.executable).with_name("nsbridgectl")
    done = subprocess.run([ctl, "-s", daemon.socket, "events", "-n", "1000", "--json"], check=True, capture_output=True)
    return [event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "blocked"]


def test_ages_outlive_kills_and_a_long_blockage_is_reported_once(tmp_path: Path, unshare_container: Factory) -> None:
    """A message waits for a queue that is not there. Its source is killed, then the daemon; then the queue is made."""
    web, legacy = unshare_container(), unshare_container()
    routes = (
        f'[route.r]\n[route.r.agent.files]\ncontainer = "{web.spec}"\nspool = {{ out = "/srv/out" }}\n'
        f'[route.r.agent.queue]\ncontainer = "{legacy.spec}"\nqueue = {{ in = {{ key = 0x51 }} }}\n'
    )
    with Nsbridged(tmp_path, routes, 'health = { max_blocked = "1s" }') as daemon:
        daemon.wait_for("RUNNING", with_senders=False)
        begun = time.monotonic()
        put_into_spool(web.rootfs / "srv/out", [b"one"])

        def age() -> float:
            return float(daemon.flow("r:files")["oldest_pending_s"] or 0)

        wait_until(lambda: daemon.agents()["r:queue"]["blocked_long"], "it has been blocked for a second")
        wait_until(lambda: age() > 1, "the message waits")
        assert daemon.agents()["r:queue"]["blocked_s"] > 1
        assert age() <= time.monotonic() - begun
        (event,) = reported(daemon)
        assert (event["name"], event["from"], event["to"]) == ("r:queue", "blocked", "blocked_long")
        assert daemon.said().count("WARNING r:queue blocked for 0:00:01: ") == 1
        before = age()
        kill_and_wait(daemon.agents()["r:files"]["pid"])
        wait_until(lambda: (daemon.agents()["r:files"]["uptime_s"] or 0) > 0, "the source runs again")
        assert before < age() <= time.monotonic() - begun
        before = age()
        assert daemon.stop() == 0
        daemon.start()
        daemon.wait_for("RUNNING", with_senders=False)
        assert before - WHOLE < age() <= time.monotonic() - begun + WHOLE
        wait_until(lambda: len(reported(daemon)) == 1, "the new daemon reports it too")
        with Receiver(legacy, 0x51, 1) as receiver:  # it makes the queue
            assert [message.body for message in receiver.messages()] == [b"one"]
        wait_until(lambda: daemon.flow("r:files")["oldest_pending_s"] is None, "it is delivered")
        wait_until(lambda: [event["from"] for event in reported(daemon)] == ["blocked", "blocked_long"], "the end")
        agent = daemon.agents()["r:queue"]
        assert (agent["blocked_s"], agent["blocked_long"]) == (None, False)
