"""Takes the pictures of docs/web.md: the page in an incident, on a desk, and on a phone in the dark.

    python -m tests.system.web_screens docs [--minutes 15]

The daemon is a fake one with a scene that is written below, so that the pictures show names as a host has them and all
states at once. `nsbridge web` and the browser are real, and the plots need their 15 minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nsbridge.supervisor.control.answer import Answer
from tests.control_fake import FakeApi, agent, daemon, flow
from tests.system.browser import Browser
from tests.web_process import Web

DESK, PHONE = (1480, 980), (412, 915)
FULL_FOR = 412  # seconds that the queue has been full at the end


class SceneApi(FakeApi):
    """A daemon whose status is what a file has."""

    path: Path

    def call(self, method: str, params: dict[str, object], answer: Answer) -> None:
        if method in ("tail", "events"):
            for record in EVENTS if method == "events" else LOG:
                answer.item(
                    {"time": "2026-11-29T" + record[0] + "Z", **dict(zip(KEYS[method], record[1:], strict=True))}
                )
            return
        self.status = json.loads(self.path.read_text())
        super().call(method, params, answer)


KEYS = {"events": ("name", "event", "from", "to", "detail"), "tail": ("level", "name", "message")}
EVENTS = (
    ("07:52:11.020", "", "daemon", "", "started", ""),
    ("07:52:11.184", "orders:web", "state", "STARTING", "RUNNING", ""),
    ("07:52:11.201", "orders:legacy", "state", "STARTING", "RUNNING", ""),
    ("08:03:44.917", "telemetry:gateway", "state", "RUNNING", "BACKOFF", "killed by SIGKILL"),
    ("08:03:44.931", "telemetry:gateway", "state", "STARTING", "RUNNING", ""),
    ("08:14:02.400", "invoices:archive", "dead", "", "aside", "9,120 bytes: longer than max_message"),
    ("08:31:20.655", "hl7:hospital", "state", "RUNNING", "WAITING", "container not running since 08:31:20"),
    ("08:33:09.310", "orders:legacy", "delivery", "relaying", "blocked", "queue 0x4d2 is full (16384 of 16384 bytes)"),
    ("08:34:51.002", "labels:printer", "state", "STARTING", "FATAL", "no queue 0x4da in k8s:prod/print-7f/app"),
    ("08:38:09.311", "orders:legacy", "delivery", "blocked", "blocked", "for 5 min: queue 0x4d2 is full"),
)
LOG = (
    ("08:03:44.917", "warning", "telemetry:gateway", "pid 2210 died: killed by SIGKILL"),
    ("08:14:02.399", "warning", "invoices:archive", "put aside: 9120 bytes, seq 4711: longer than max_message (8192)"),
    ("08:31:20.655", "info", "hl7:hospital", "runc:hospital has ended"),
    ("08:31:20.656", "info", "hl7:hospital", "waiting: container not running"),
    ("08:33:09.310", "warning", "orders:legacy", "blocked: queue 0x4d2 is full (16384 of 16384 bytes)"),
    ("08:34:51.002", "error", "labels:printer", "no queue 0x4da: it stays stopped until nsbridgectl start"),
    ("08:38:09.311", "warning", "orders:legacy", "blocked for 5 min: queue 0x4d2 is full (16384 of 16384 bytes)"),
    (
        "08:39:30.120",
        "warning",
        "reports:inbox",
        "refused: '2026-11-29 <draft>.pdf' has 31,457,280 bytes, 8192 are allowed",
    ),
)


def scene(second: float, end: float) -> dict[str, Any]:
    """Return the status after so many seconds, of a scene that lasts until `end`."""
    full = max(0.0, second - (end - FULL_FOR))
    blocked = {"phase": "blocked", "detail": "blocked: queue 0x4d2 is full (16384 of 16384 bytes)"}
    legacy = blocked | {"blocked_s": full, "blocked_long": full > 300} if full else {}
    gone = max(0.0, second - (end - 520))
    hospital = {"state": "WAITING", "pid": None, "detail": "container not running since 08:31:20", "retry_in_s": 21.0}
    routes = _routes(legacy, hospital if gone else {})
    numbers = _numbers(second, full, gone)
    for route, (there, back) in zip(routes, numbers, strict=True):
        one, other = (member["name"] for member in route["agents"])
        route["flows"] = [flow(one, other, **there), flow(other, one, **back)]
    about = {"pid": 2104, "version": "0.2.0", "uptime_s": 2900 + second, "config": "/etc/nsbridge/nsbridge.toml"}
    return {"schema": 1, "daemon": about, "routes": routes}


def _routes(legacy: dict[str, Any], hospital: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the scene's routes, given what differs of two agents."""
    fatal = {"state": "FATAL", "pid": None, "detail": "no queue 0x4da in k8s:prod/print-7f/app: is the key right?"}
    return [
        _route("orders", ("web", "docker:web", "spool", {}), ("legacy", "runc:legacy", "queue", legacy)),
        _route("invoices", ("billing", "docker:billing", "log", {}), ("archive", "podman:archive", "spool", {})),
        _route(
            "telemetry", ("gateway", "incus:gw", "spool", {"restarts": 1}), ("historian", "runc:historian", "queue", {})
        ),
        _route(
            "hl7",
            ("lab", "compose:lab/app", "spool", {}),
            ("hospital", "runc:hospital", "queue", hospital),
        ),
        _route("labels", ("shop", "docker:shop", "file", {}), ("printer", "k8s:prod/print-7f/app", "queue", fatal)),
        _route("reports", ("inbox", "host", "spool", {}), ("mail", "lxc:mail", "spool", {})),
        _route(
            "audit",
            ("app", "docker:app", "socket", {"state": "STOPPED", "wanted": False, "pid": None}),
            ("vault", "docker:vault", "log", {"state": "STOPPED", "wanted": False, "pid": None}),
        ),
    ]


def _numbers(second: float, full: float, gone: float) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the numbers of both flows of each route, after so long; `full` and `gone` since that began."""
    done = second - full
    waves = 60 * second + 900 * (1 - math.cos(second / 45))
    return [
        (_number(40 * done + 8 * math.sin(done / 9), full * 40, full), _number(39 * done)),
        (_number(waves / 8, 3 if second % 60 < 20 else 0, second % 20 / 8, dead=3, dead_letters=3), _number(waves / 9)),
        (_number(waves * 6, 20 + 15 * math.sin(second / 11), 0.1), _number(waves)),
        (_number(4 * (second - gone), 4 * gone, gone), _number(3 * (second - gone))),
        (_number(0, 12, second), _number(0)),
        (_number(2 * second + 30 * (second // 120), refused=2), _number(0)),
        (_number(0), _number(0)),
    ]


def _route(name: str, *members: tuple[str, str, str, dict[str, Any]]) -> dict[str, Any]:
    agents = [
        agent(f"{name}:{short}", container=container, endpoint=endpoint, start_time=1.79e9, **facts)
        for short, container, endpoint, facts in members
    ]
    return {"name": name, "delivery": "exactly-once", "agents": agents, "flows": []}


def _number(delivered: float, pending: float = 0, age: float | None = None, **more: object) -> dict[str, Any]:
    there = {"delivered": int(delivered), "bytes": 240 * int(delivered), "pending": int(pending)}
    return there | {"oldest_pending_s": age if pending >= 1 else None} | more


def take(directory: Path, minutes: float) -> None:
    """Run the scene, and take the pictures at its end."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "status.json")
        end = 60 * minutes
        path.write_text(json.dumps(scene(0.0, end)))

        def prepare(api: FakeApi) -> None:
            api.__class__ = SceneApi
            api.path = path  # type: ignore[attr-defined]

        with daemon(prepare) as control, Web(control) as web, _playing(path, end):
            time.sleep(end)  # the plots' own time
            _pictures(web, directory)


@contextmanager
def _playing(path: Path, end: float) -> Iterator[None]:
    """Play the scene, also while the pictures are taken."""
    ended, began = threading.Event(), time.monotonic()

    def play() -> None:
        while not ended.wait(0.5):
            path.with_suffix(".new").write_text(json.dumps(scene(time.monotonic() - began, end)))
            path.with_suffix(".new").rename(path)

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _pictures(web: Web, directory: Path) -> None:
    for name, page, size, dark in (
        ("web.png", "", DESK, False),
        ("web-phone.png", "?sort=trouble", PHONE, True),
    ):
        with Browser(*size) as browser:
            browser.prefer(dark=dark)
            browser.open(web.url + page)
            browser.wait(lambda shown=browser: shown.texts("#live") == ["live"], "it is live")  # type: ignore[misc]
            browser.picture(directory / name)
            print(directory / name, browser.complaints() or "no complaints")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.web_screens", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0)
    options = parser.parse_args(argv)
    take(options.directory, options.minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
