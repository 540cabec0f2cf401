"""A reload that must change nothing: a broken file, a log that cannot be opened, no file at all, a daemon that ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.agents import scoreboard
from nsbridge.agents.loop import Loop
from nsbridge.config.errors import ConfigError, NsbridgeError
from nsbridge.config.schema import Config, DaemonConfig, HealthConfig, LogConfig, RouteConfig
from nsbridge.supervisor.cli import render
from nsbridge.supervisor.containers.arrivals import Arrivals
from nsbridge.supervisor.control.orders import Orders
from nsbridge.supervisor.control.reloading import Reloader
from nsbridge.supervisor.health.check import HealthCheck
from nsbridge.supervisor.lifecycle.services import Services
from nsbridge.supervisor.log.events import Events
from nsbridge.supervisor.log.log import open_log
from nsbridge.supervisor.routes.loops import Circles
from nsbridge.supervisor.routes.plan import Plan
from nsbridge.supervisor.routes.roster import Roster
from nsbridge.supervisor.routes.route import Route

HEAD = '[daemon]\nlog = {{ file = "{}"{} }}\n'
ROUTE = """
[route.{}.agent.a]
container = "runc:{}-a"
spool = {{ out = "/srv/out" }}
[route.{}.agent.b]
container = "runc:{}-b"
spool = {{ in = "/srv/in" }}
"""


class Daemon:
    """The parts that a reload touches, with a configuration file that the test writes; no loop runs."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "nsbridge.toml"
        self.log_file = directory / "log"
        config = Config(DaemonConfig(log=LogConfig(file=str(self.log_file))), (), str(self.file))
        self.loop = Loop()
        self.log = open_log(config.daemon.log)
        self.services = Services(
            self.loop, self.log, Events(), str(directory / "state"), Arrivals(self.loop, self.log), HealthConfig()
        )
        self.roster = Roster(self.loop, self.log, self._make, lambda: None)
        self.health = HealthCheck(self.services, self.roster)
        self.reloader = Reloader(config, self.services, self.roster, Orders(self.roster), self.health)

    def _make(self, config: RouteConfig) -> Route:
        return Route(self.services, config, Circles(), lambda _agent: self.roster.changed())

    def write(self, *routes: str, log: Path | None = None, more: str = "") -> None:
        text = HEAD.format(log or self.log_file, more) + "".join(
            ROUTE.format(name, name, name, name) for name in routes
        )
        self.file.write_text(text, encoding="utf-8")

    def said(self) -> list[str]:
        return [line.split(" ", 1)[1] for line in self.log_file.read_text(encoding="utf-8").splitlines()]

    def events(self) -> list[str]:
        return [happening.detail for happening in self.services.events.ring.recent() if happening.event == "reload"]

    def close(self) -> None:
        self.roster.close()
        self.services.arrivals.close()
        self.log.close()
        self.loop.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    made.close()


def test_a_reload_says_what_it_does_in_one_line_and_as_an_event(daemon: Daemon) -> None:
    daemon.write("a", "b", more=', level = "warning"')
    plan = daemon.reloader.reload()
    assert plan.start == ("a", "b")
    summary = 'start a, b; 0 unchanged; daemon.log.level: "info" → "warning": at once'
    assert daemon.events() == [summary]
    assert daemon.reloader.config.daemon.log.level == "warning"
    daemon.write("a", "b")
    daemon.reloader.reload()
    assert 'INFO nsbridged reload: 2 unchanged; daemon.log.level: "warning" → "info": at once' in daemon.said()


def test_changed_state_dir_reports_what_stays_in_the_old_one(daemon: Daemon, tmp_path: Path) -> None:
    """A daemon with the new one would not find it."""
    daemon.write("a")
    daemon.reloader.reload()
    source = daemon.roster.agents[0]
    source.scoreboard.cells[scoreboard.PENDING] = 12
    old = daemon.reloader.config.daemon.state_dir
    text = daemon.file.read_text(encoding="utf-8")
    daemon.file.write_text(text.replace("[daemon]", f'[daemon]\nstate_dir = "{tmp_path}/new"'), encoding="utf-8")
    for plan in (daemon.reloader.plan(), daemon.reloader.reload()):
        assert plan.remarks[-1] == (
            f"daemon.state_dir: what waits now (12 messages and 0 dead letters in {old}), counters and positions stay "
            f"there: to keep them, stop nsbridged and move the directory (mv {old} {tmp_path}/new) before it starts "
            "again"
        )
        assert any(line.startswith("daemon ") and "12 messages" in line for line in render.reload(_answer(plan)))
    assert f"(12 messages and 0 dead letters in {old})" in daemon.said()[-1]


def _answer(plan: Plan) -> dict[str, object]:
    return {"dry_run": True, **plan.item()}


def test_a_new_route_without_autostart_is_listed_apart(daemon: Daemon) -> None:
    daemon.write("a", "b")
    text = daemon.file.read_text(encoding="utf-8")
    daemon.file.write_text(f"{text}\n[route.b]\nautostart = false\n", encoding="utf-8")
    plan = daemon.reloader.plan()
    assert (plan.start, plan.held) == (("a", "b"), ("b",))
    assert plan.summary() == "start a, b; of these b stopped, by autostart = false; 0 unchanged"
    assert render.reload({"dry_run": True, **plan.item()})[0] == "would start        a, b (stopped: autostart = false)"


def test_a_broken_file_changes_nothing_and_each_error_is_logged(daemon: Daemon) -> None:
    daemon.write("a")
    daemon.reloader.reload()
    before, routes = daemon.reloader.config, dict(daemon.roster.routes)
    daemon.write("a", "b")
    broken = daemon.file.read_text() + "[route.c]\nwindw = 1\n"
    daemon.file.write_text(broken)
    with pytest.raises(ConfigError) as error:
        daemon.reloader.reload()
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{daemon.file}: route.c") for line in lines)
    assert daemon.said()[-3:] == [
        *(f"ERROR nsbridged reload: {line}" for line in lines),
        "ERROR nsbridged reload: nothing was changed",
    ]
    assert daemon.events()[-1] == f"nothing was changed: {'; '.join(lines)}"
    assert (daemon.reloader.config, daemon.roster.routes) == (before, routes)


def test_a_file_that_is_gone_changes_nothing(daemon: Daemon) -> None:
    with pytest.raises(ConfigError, match=str(daemon.file)):
        daemon.reloader.reload()
    assert daemon.said()[-1] == "ERROR nsbridged reload: nothing was changed"


def test_a_log_that_cannot_be_opened_changes_nothing(daemon: Daemon, tmp_path: Path) -> None:
    daemon.write("a", log=tmp_path / "missing" / "log")
    with pytest.raises(NsbridgeError, match=r"daemon\.log\.file: cannot open"):
        daemon.reloader.reload()
    assert daemon.roster.routes == {}
    assert daemon.said()[-1] == "ERROR nsbridged reload: nothing was changed"


def test_the_log_continues_as_the_new_file_says(daemon: Daemon, tmp_path: Path) -> None:
    daemon.write(log=tmp_path / "other", more=', format = "json", level = "debug"')
    daemon.reloader.reload()
    write = daemon.log.debug
    write("", "hello")
    lines = [json.loads(line) for line in (tmp_path / "other").read_text(encoding="utf-8").splitlines()]
    assert [line["message"] for line in lines][1:] == ["hello"]
    assert lines[0]["message"].startswith("reload: 0 unchanged; daemon.log.file:")


def test_what_needs_a_restart_is_logged_at_every_reload(daemon: Daemon) -> None:
    daemon.write()
    daemon.file.write_text('[daemon]\nstate_dir = "/elsewhere"\n' + daemon.file.read_text().removeprefix("[daemon]\n"))
    for _ in range(2):
        remark, _ = daemon.reloader.reload().remarks
        assert remark.startswith('daemon.state_dir: "/run/nsbridge" → "/elsewhere": needs a restart')


def test_a_plan_alone_touches_nothing(daemon: Daemon, tmp_path: Path) -> None:
    daemon.write("a", log=tmp_path / "other")
    assert daemon.reloader.plan().start == ("a",)
    assert daemon.roster.routes == {}
    assert not (tmp_path / "other").exists()
    assert daemon.said() == []
    assert daemon.events() == []


def test_a_daemon_without_a_file_refuses_kindly(daemon: Daemon) -> None:
    daemon.reloader.config = Config(DaemonConfig(), ())
    with pytest.raises(NsbridgeError, match="was started without a configuration file"):
        daemon.reloader.reload()


def test_a_daemon_that_is_stopping_refuses(daemon: Daemon) -> None:
    daemon.write("a")
    daemon.roster.end()
    with pytest.raises(NsbridgeError, match="the daemon is stopping"):
        daemon.reloader.reload()
    assert daemon.roster.routes == {}


def test_hup_never_raises(daemon: Daemon) -> None:
    daemon.reloader.on_signal()
    assert daemon.said()[-1] == "ERROR nsbridged reload: nothing was changed"

    def breaks(_path: str) -> Config:
        raise RuntimeError("a bug in reading")

    given = daemon.reloader.config, daemon.services, daemon.roster, Orders(daemon.roster), daemon.health
    buggy = Reloader(*given, breaks)
    buggy.on_signal()
    assert daemon.said()[-1].endswith("RuntimeError: a bug in reading")
