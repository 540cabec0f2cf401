"""nsbridgectl reload and events: the installed command against a real socket, then against the real daemon."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.control_fake import DEADLINE, Served, ctl
from tests.system.nsbridged import Nsbridged


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


# -- reload

PLAN: dict[str, Any] = {
    "dry_run": False,
    "stop": ["old"],
    "start": ["new"],
    "restart": ["orders"],
    "unchanged": ["a", "b"],
}


def test_reload_says_what_became_of_every_route(served: Served) -> None:
    served.api.results["reload"] = PLAN | {"daemon": ["daemon.log.level: applied"]}
    done = served.run("reload")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "stops         old",
        "starts        new",
        "restarts      orders",
        "leaves alone  a, b",
        "daemon        daemon.log.level: applied",
    ]
    assert served.api.calls == [("reload", {"dry_run": False, "wait": False})]


def test_a_dry_run_says_what_would_become_of_them(served: Served) -> None:
    served.api.results["reload"] = PLAN | {"dry_run": True, "stop": [], "daemon": []}
    assert served.run("reload", "--dry-run").stdout.splitlines() == [
        "would start        new",
        "would restart      orders",
        "would leave alone  a, b",
    ]
    assert served.api.calls == [("reload", {"dry_run": True, "wait": False})]


def test_a_reload_that_changes_nothing_says_so(served: Served) -> None:
    served.api.results["reload"] = PLAN | {"stop": [], "start": [], "restart": [], "daemon": []}
    assert served.run("reload", "--wait").stdout.splitlines() == ["no route has changed", "leaves alone  a, b"]
    assert served.api.calls == [("reload", {"dry_run": False, "wait": True})]


def test_many_routes_are_listed_in_80_columns(served: Served) -> None:
    names = [f"route-{number:03}" for number in range(200)]
    served.api.results["reload"] = PLAN | {"unchanged": names, "daemon": []}
    lines = served.run("reload").stdout.splitlines()
    assert max(map(len, lines)) <= 79
    assert re.findall(r"route-\d+", " ".join(lines)) == names


def test_reload_json_is_the_answer_itself(served: Served) -> None:
    served.api.results["reload"] = PLAN | {"daemon": []}
    assert json.loads(served.run("reload", "--json").stdout) == PLAN | {"daemon": []}


# -- events

EVENT = {
    "time": "2026-11-25T19:00:00.123Z",
    "name": "orders:web",
    "event": "state",
    "from": "STARTING",
    "to": "RUNNING",
    "detail": "",
}


def test_events_are_a_line_each_escaped(served: Served) -> None:
    served.api.records = [
        EVENT,
        EVENT | {"from": "RUNNING", "to": "WAITING", "detail": "it has ended\x1b[2J"},
        EVENT | {"name": "", "event": "reload", "from": "", "to": "", "detail": "restart orders"},
    ]
    assert served.run("events", "-n", "3", "orders").stdout.splitlines() == [
        "2026-11-25T19:00:00.123Z orders:web STARTING -> RUNNING",
        r"2026-11-25T19:00:00.123Z orders:web RUNNING -> WAITING: it has ended\x1b[2J",
        "2026-11-25T19:00:00.123Z nsbridged reload: restart orders",
    ]
    assert served.api.calls == [("events", {"name": "orders", "count": 3, "follow": False})]


def test_events_json_is_an_object_a_line(served: Served) -> None:
    served.api.records = [EVENT, EVENT]
    assert [json.loads(line) for line in served.run("events", "--json").stdout.splitlines()] == [EVENT, EVENT]


def test_events_follow_prints_at_once_and_ends_quietly_on_ctrl_c(served: Served) -> None:
    with ctl("events", "-f", control=served.path) as process:
        served.pump(lambda: any(method == "events" for method, _ in served.api.calls))
        served.api.answers[-1].item(EVENT)
        assert process.stdout is not None
        assert process.stdout.readline() == "2026-11-25T19:00:00.123Z orders:web STARTING -> RUNNING\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=DEADLINE) == ("", "")
    assert process.returncode == 0


# -- the real daemon


def _route(name: str, directory: Path, container: str = "host") -> str:
    """Return a route between two spools of the host itself, which needs no container."""
    agents = ""
    for side in ("left", "right"):
        (directory / name / side).mkdir(parents=True, exist_ok=True)
        agents += (
            f'[route.{name}.agent.{side}]\ncontainer = "{container}"\n'
            f'spool = {{ out = "{directory}/{name}/{side}/out", in = "{directory}/{name}/{side}/in" }}\n'
        )
    return agents


class Ctl:
    """A real daemon, and nsbridgectl that speaks to it."""

    def __init__(self, daemon: Nsbridged) -> None:
        self.daemon = daemon

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with ctl(*arguments, control=str(self.daemon.socket)) as process:
            stdout, stderr = process.communicate(timeout=DEADLINE)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_a_changed_file_is_planned_done_and_seen_in_events(tmp_path: Path) -> None:
    with Nsbridged(tmp_path, _route("a", tmp_path) + _route("b", tmp_path)) as daemon:
        daemon.wait_for("RUNNING")
        run, pids = Ctl(daemon), {name: agent["pid"] for name, agent in daemon.agents().items()}
        written = daemon.config.read_text()
        daemon.config.write_text(written.replace("route.b.", "route.c."))
        plan = run("reload", "--dry-run").stdout.splitlines()
        assert plan == ["would stop         b", "would start        c", "would leave alone  a"]
        assert set(daemon.agents()) == {"a:left", "a:right", "b:left", "b:right"}
        done = run("reload", "--wait")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == ["stops         b", "starts        c", "leaves alone  a"]
        daemon.wait_for("RUNNING", "c:left", "c:right")
        after = daemon.agents()
        assert set(after) == {"a:left", "a:right", "c:left", "c:right"}
        assert {name: after[name]["pid"] for name in ("a:left", "a:right")} == {
            name: pids[name] for name in ("a:left", "a:right")
        }
        events = run("events", "-n", "100").stdout
        assert re.search(r" nsbridged reload: .*b", events)
        assert " c:left STARTING -> RUNNING" in events
        only = run("events", "-n", "100", "--json", "c").stdout.splitlines()
        assert {json.loads(line)["name"] for line in only} == {"c:left", "c:right"}


def test_a_broken_file_exits_2_with_a_line_per_mistake(tmp_path: Path) -> None:
    with Nsbridged(tmp_path, _route("a", tmp_path)) as daemon:
        daemon.wait_for("RUNNING")
        before = daemon.agents()
        with daemon.config.open("a") as config:
            config.write("[route.b]\nnonsense = 1\nwindow = 7\n")
        for arguments in (["reload"], ["reload", "--dry-run"], ["reload", "--json"]):
            done = Ctl(daemon)(*arguments)
            assert (done.returncode, done.stdout) == (2, "")
            assert "nonsense" in done.stderr
            assert "window" in done.stderr
            assert all(line.startswith("nsbridgectl: ") for line in done.stderr.splitlines())
        assert {name: agent["pid"] for name, agent in daemon.agents().items()} == {
            name: agent["pid"] for name, agent in before.items()
        }


def test_every_command_exits_5_for_an_unknown_name(tmp_path: Path) -> None:
    with Nsbridged(tmp_path, _route("a", tmp_path)) as daemon:
        run = Ctl(daemon)
        for words in (
            "status",
            "start",
            "stop",
            "restart",
            "inspect",
            "top",
            "tail",
            "events",
            "dead list",
            "dead retry",
        ):
            done = run(*words.split(), "nobody")
            assert (done.returncode, done.stdout) == (5, ""), words
            assert done.stderr.count("\n") == 1
            assert "nobody" in done.stderr


def test_orders_wait_until_they_are_done_or_cannot_be(tmp_path: Path) -> None:
    away = _route("b", tmp_path, f"pidfile:{tmp_path}/nothing.pid")
    with Nsbridged(tmp_path, _route("a", tmp_path) + away) as daemon:
        run = Ctl(daemon)
        daemon.wait_for("RUNNING", "a:left", "a:right")
        daemon.wait_for("WAITING", "b:left", "b:right")
        assert run("status").returncode == 3
        assert run("status", "a").returncode == 0
        assert run("stop", "--wait", "a").returncode == 0
        assert {daemon.agents()[name]["state"] for name in ("a:left", "a:right")} == {"STOPPED"}
        assert run("start", "--wait", "a").returncode == 0
        assert run("restart", "--wait", "a:left").returncode == 0
        waited = run("start", "--wait", "b")
        assert waited.returncode == 1
        assert "b:left is WAITING" in waited.stderr


def test_an_order_that_an_agent_holds_up_says_which(tmp_path: Path) -> None:
    """An agent that is stopped by SIGSTOP does not hand over what it has: stopping takes until it is given up."""
    with Nsbridged(tmp_path, _route("a", tmp_path)) as daemon:
        daemon.wait_for("RUNNING")
        psutil.Process(daemon.agents()["a:left"]["pid"]).suspend()
        done = Ctl(daemon)("--timeout", "0.5", "stop", "--wait", "a")
        assert done.returncode == 1
        assert "stop: not done within 0.5 s: " in done.stderr
        assert "a:left is STOPPING" in done.stderr


def test_top_and_inspect_show_the_agents_processes_as_they_are(tmp_path: Path) -> None:
    with Nsbridged(tmp_path, _route("a", tmp_path)) as daemon:
        daemon.wait_for("RUNNING")
        run, agent = Ctl(daemon), daemon.agents()["a:left"]
        (row,) = json.loads(run("top", "--json", "-d", "0.3", "a:left").stdout)["agents"]
        assert (row["name"], row["pid"], row["state"]) == ("a:left", agent["pid"], "RUNNING")
        own = psutil.Process(agent["pid"]).memory_full_info().uss
        assert own / 2 < row["memory"] < own * 2
        assert (row["out"], row["in"], row["bytes"], row["pending"]) == (0, 0, 0, 0)
        assert 0 <= row["cpu"] < 100
        (facts,) = json.loads(run("inspect", "--json", "a:left").stdout)
        assert facts["pid"] == agent["pid"]
        assert facts["threads"] == psutil.Process(agent["pid"]).num_threads()
        assert facts["capabilities"]["effective"] == []
        assert facts["namespaces"]["mnt"]["inode"] == agent["ns_inode"]
        assert facts["namespaces"]["mnt"]["host"] == "same"
        assert {"rss", "own"} <= set(facts["memory"])
        assert facts["descriptors"]["count"] == psutil.Process(agent["pid"]).num_fds()
        text = run("inspect", "a:left").stdout
        assert f"  process       pid {agent['pid']}, " in text
        assert "  capabilities  none" in text
        assert len(text.splitlines()) < 26  # a spool's agent has the list of waiting names open, too
        assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
