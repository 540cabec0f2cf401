"""Debian's Prometheus scrapes a real daemon under load; `make scrape` does it for 60 seconds, and with 200 routes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scrape
from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import LIMIT, tool, wait_until
from tests.system.test_relay import route
from tests.system.test_web import CONFINED, readable
from tests.system.traffic import Receiver
from tests.web_process import Web

pytestmark = pytest.mark.alone  # it measures

EXAMPLES = Path(__file__).parents[2] / "examples/prometheus"
SECONDS = float(os.environ.get("NSB_TEST_SCRAPE", "6"))
ROUTES = 40
SERIES = {
    "nsbridge_up": 1,
    "nsbridge_build_info": 1,
    "nsbridge_agent_state": 2 * 7,
    "nsbridge_agent_blocked": 2,
    "nsbridge_agent_restarts_total": 2,
    "nsbridge_agent_start_time_seconds": 2,
    "nsbridge_agent_cpu_seconds_total": 2,
    "nsbridge_agent_resident_memory_bytes": 2,
    "nsbridge_supervisor_cpu_seconds_total": 1,
    "nsbridge_flow_delivered_messages_total": 2,
    "nsbridge_flow_delivered_bytes_total": 2,
    "nsbridge_flow_pending_messages": 2,
    "nsbridge_flow_repeats_dropped_total": 2,
    "nsbridge_flow_in_doubt_total": 2,
    "nsbridge_flow_dead_letters": 2,
    "nsbridge_flow_dead_letters_total": 2,
    "nsbridge_flow_refused_files": 2,
    "nsbridge_flow_refused_total": 2,
    "nsbridge_flow_oldest_pending_seconds": 2,
}
COUNTERS = {
    "nsbridge_flow_delivered_messages_total": "delivered",
    "nsbridge_flow_delivered_bytes_total": "bytes",
    "nsbridge_flow_pending_messages": "pending",
    "nsbridge_flow_repeats_dropped_total": "repeats_dropped",
    "nsbridge_flow_in_doubt_total": "in_doubt",
    "nsbridge_flow_dead_letters_total": "dead",
    "nsbridge_flow_dead_letters": "dead_letters",
    "nsbridge_flow_refused_files": "refused_now",
    "nsbridge_flow_refused_total": "refused",
}


class Prometheus:
    """A real one with the example's configuration, which scrapes every 2 seconds and keeps its data in `directory`."""

    def __init__(self, directory: Path, target: str) -> None:
        shutil.copy(EXAMPLES / "nsbridge.rules.yml", directory)
        config = (EXAMPLES / "prometheus.yml").read_text(encoding="utf-8")
        config = config.replace("127.0.0.1:9847", target).replace("_interval: 15s", "_interval: 2s")
        (directory / "prometheus.yml").write_text(config, encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self._directory = directory

    @contextmanager
    def running(self) -> Iterator[None]:
        command = [tool("prometheus"), f"--config.file={self._directory}/prometheus.yml"]
        command += [f"--storage.tsdb.path={self._directory}/data", f"--web.listen-address={self._address}"]
        with (self._directory / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(self._is_ready, "prometheus answers")
            yield
        finally:
            process.terminate()
            process.wait(LIMIT)

    def _is_ready(self) -> bool:
        try:
            return bool(self._get("/-/ready"))
        except OSError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = json.loads(self._get(f"/api/v1/query?query={urllib.parse.quote(expression)}"))
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def value(self, expression: str) -> float:
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else float("nan")

    def rules(self) -> list[dict[str, Any]]:
        groups = json.loads(self._get("/api/v1/rules"))["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self._address}{path}", timeout=10) as answer:
            return bytes(answer.read())


@contextmanager
def load(spool: Path) -> Iterator[list[int]]:
    """Put a message into the spool 100 times a second; yields a list that has their number in the end."""
    ended, count = threading.Event(), [0]

    def write() -> None:
        while not ended.wait(0.01):
            hidden = spool / f".{count[0]}"
            hidden.write_bytes(b"x" * 100)
            hidden.rename(spool / f"{count[0]:08d}")
            count[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield count
    finally:
        ended.set()
        thread.join()


def status_flows(daemon: Nsbridged) -> list[dict[str, Any]]:
    return [flow for found in daemon.call("status")["routes"] for flow in found["flows"]]


def test_prometheus_scrapes_a_daemon_under_load(engine_base: Path, tmp_path: Path, unshare_container: Factory) -> None:
    web_box, legacy = unshare_container(), unshare_container()
    directory = engine_base / "web-prometheus"
    directory.mkdir()
    daemon = readable(directory, route(web_box.spec, legacy.spec))
    with daemon, Web(daemon.socket, through=CONFINED) as web:
        daemon.wait_for("RUNNING")
        prometheus = Prometheus(tmp_path, f"127.0.0.1:{web.port}")
        with prometheus.running():
            wait_until(lambda: prometheus.value("up") == 1, "it scrapes, which a new target may have to wait 5 s for")
            with Receiver(legacy, 0x51, 1 << 30), load(web_box.rootfs / "srv/out") as count:
                time.sleep(SECONDS)  # the load's own time
                slowest = prometheus.value(f"max_over_time(scrape_duration_seconds[{SECONDS:.0f}s])")
                print(f"the slowest scrape took {slowest:.3f} s")
                assert prometheus.value(f"min_over_time(up[{SECONDS:.0f}s])") == 1
            wait_until(lambda: daemon.flow("r:files")["delivered"] == count[0], "all is delivered")
            last = f"nsbridge_flow_delivered_messages_total{{sink='r:queue'}} == {count[0]}"
            wait_until(lambda: prometheus.query(last), "the last message is counted")
            found = {name: len(prometheus.query(name)) for name in SERIES}
            assert found == SERIES
            for flow in status_flows(daemon):
                for name, key in COUNTERS.items():
                    assert prometheus.value(f"{name}{{source='{flow['from']}',sink='{flow['to']}'}}") == flow[key], name
            assert {rule["health"] for rule in prometheus.rules()} == {"ok"}
            assert not [rule["name"] for rule in prometheus.rules() if rule["state"] == "firing"]
        text = web.get("/metrics").body
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_scrape_of_many_routes_costs_the_daemon_little() -> None:
    (cost,) = scrape.measure(ROUTES, 5, ["/metrics"])
    print(scrape.report(ROUTES, [cost]))
    assert cost.seconds < 0.25
    assert cost.cpu < 0.005
