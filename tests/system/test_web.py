"""`nsbridge web` as an unprivileged process beside a real daemon: what it says, and what becomes of both in faults."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged, kill_and_wait
from tests.system.room import crowd, run, tool, wait_dead, wait_until
from tests.system.test_relay import route
from tests.system.traffic import put_into_spool
from tests.web_process import Web

READER = 51100  # the user and group that may read
_UNIT = Path(__file__).parents[2] / "examples/service/nsbridge-web.service"
UNPRIVILEGED = ("setpriv", f"--reuid={READER}", f"--regid={READER}", "--clear-groups", "--no-new-privs")
CONFINED = (*UNPRIVILEGED, "--bounding-set=-all", "--inh-caps=-all")


def readable(directory: Path, routes: str, **more: str) -> Nsbridged:
    """Return a daemon, not yet started, whose socket the group READER may read."""
    daemon = Nsbridged(directory, routes, **more)
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace('control.sock" }', f'control.sock", read_group = "{READER}" }}'))
    (directory / "state").mkdir(mode=0o755, exist_ok=True)
    directory.chmod(0o711)
    return daemon


def seconds_until(condition: Callable[[], object], what: str, limit: float = 20.0) -> float:
    began = time.monotonic()
    wait_until(condition, what, limit)
    return time.monotonic() - began


def test_unprivileged_process_shows_what_happens(engine_base: Path, runc_container: Factory) -> None:
    """Messages, a killed agent, a container that is away, a daemon that is killed and started again."""
    web_box, legacy = runc_container(), runc_container()
    directory = engine_base / "web-shows"
    directory.mkdir()
    daemon = readable(directory, route(web_box.spec, legacy.spec))
    with daemon, Web(daemon.socket, through=CONFINED) as web:
        daemon.wait_for("RUNNING")
        assert f"\nUid:\t{READER}\t" in Path(f"/proc/{web.pid}/status").read_text()
        assert "\nCapEff:\t0000000000000000\n" in Path(f"/proc/{web.pid}/status").read_text()
        wait_until(lambda: web.get("/healthz").status == 200, "all is well")
        put_into_spool(web_box.rootfs / "srv/out", [b"one", b"two"])
        wait_until(lambda: daemon.flow("r:files")["delivered"] == 2, "both are delivered")
        delivered = 'nsbridge_flow_delivered_messages_total{route="r",sink="r:queue",source="r:files"} 2.0'
        wait_until(lambda: delivered in web.get("/metrics").text, "metrics have them")
        assert re.search(r'nsbridge_agent_cpu_seconds_total\{agent="r:files",route="r"\} ', web.get("/metrics").text)
        with web.events("/api/events?for=page") as events:
            killed = time.monotonic()
            kill_and_wait(daemon.agents()["r:queue"]["pid"])
            next(data for kind, data in events if kind == "event" and data["to"] == "BACKOFF")
            rows = (row for kind, data in events if kind == "rows" for row in data["rows"])
            next(row for row in rows if row["name"] == "r:queue" and row["cells"].get("restarts") == "1")
            assert time.monotonic() - killed < 5  # the page's test asks for 1 s, alone on its machine
        legacy.stop()
        wait_until(lambda: "r:queue is WAITING" in web.get("/healthz").text, "the container's end is seen")
        daemon.kill()
        wait_until(lambda: "nobody listens there any more" in web.get("/healthz").text, "the daemon is away")
        assert "nsbridge_up 0.0" in web.get("/metrics").text
        legacy.start()
        daemon.start()
        wait_until(lambda: web.get("/healthz").status == 200, "all is well again")
        assert web.stop() == (0, "")


def test_hung_daemon_is_reported_and_recovers(tmp_path: Path, unshare_container: Factory, engine_base: Path) -> None:
    directory = engine_base / "web-hung"
    directory.mkdir()
    daemon = readable(directory, route(unshare_container().spec, unshare_container().spec))
    with daemon, Web(daemon.socket, through=CONFINED) as web:
        daemon.wait_for("RUNNING")
        wait_until(lambda: web.get("/healthz").status == 200, "all is well")
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: "did not answer" in web.get("/healthz").text, "the daemon hangs")
            assert "nsbridge_up 0.0" in web.get("/metrics").text
            assert "r:files" in web.get("/").text, "the page shows what it knew last"
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        wait_until(lambda: web.get("/healthz").status == 200, "all is well again")


def test_daemon_does_not_notice_a_web_process_that_hangs_or_dies(engine_base: Path, unshare_container: Factory) -> None:
    """It hangs with both of its streams open, while events flow."""
    directory = engine_base / "web-hangs"
    directory.mkdir()
    daemon = readable(directory, route(unshare_container().spec, unshare_container().spec))
    with daemon:
        daemon.wait_for("RUNNING")
        with Web(daemon.socket, through=CONFINED) as web:
            wait_until(lambda: web.get("/healthz").status == 200, "all is well")
            os.kill(web.pid, signal.SIGSTOP)
            for _ in range(20):
                kill_and_wait(daemon.agents()["r:files"]["pid"])
                daemon.wait_for("RUNNING", with_senders=False)
            assert seconds_until(lambda: daemon.call("version"), "the daemon answers") < crowd()
            os.kill(web.pid, signal.SIGCONT)
            wait_until(
                lambda: 'nsbridge_agent_restarts_total{agent="r:files"' in web.get("/metrics").text, "it is back"
            )
            wait_until(lambda: web.get("/healthz").status == 200, "all is well again")
            pid = web.pid
            os.kill(pid, signal.SIGKILL)
            wait_dead(pid)
        assert daemon.agents()["r:files"]["state"] == "RUNNING"
        assert "bug" not in daemon.said()


def test_process_outside_of_the_group_says_that_it_may_not(engine_base: Path, unshare_container: Factory) -> None:
    directory = engine_base / "web-stranger"
    directory.mkdir()
    daemon = readable(directory, route(unshare_container().spec, unshare_container().spec))
    stranger = tuple(word.replace(str(READER), str(READER + 1)) for word in CONFINED)
    with daemon, Web(daemon.socket, through=stranger) as web:
        wait_until(lambda: "not permitted" in web.get("/healthz").text, "the reason is there")
        assert web.get("/healthz").status == 503


def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    """It says what it does not know, and how exposed the service is (0 to 10)."""
    copy = tmp_path / _UNIT.name
    copy.write_text(
        _UNIT.read_text(encoding="utf-8").replace("=/usr/local/bin/nsbridge", "=/bin/echo"), encoding="utf-8"
    )
    done = run([tool("systemd-analyze"), "verify", "--man=no", copy])
    assert (done.stdout, done.stderr) == (b"", b"")
    judged = run([tool("systemd-analyze"), "security", "--no-pager", "--offline=true", copy]).stdout.decode()
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", judged)
    assert found is not None, judged
    assert float(found[1]) < 2.5
