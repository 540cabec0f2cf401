"""The answers of the control socket's methods, over a roster of real routes whose containers do not run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nsbridge.config.errors import NoSuchNameError, NsbridgeError, UsageError
from nsbridge.supervisor.control.answer import Answer
from nsbridge.supervisor.control.api import Api
from nsbridge.supervisor.control.connection import READING_METHODS
from nsbridge.supervisor.control.orders import Orders
from tests.answer_fake import Answered
from tests.unit.test_reloading import Daemon

NAMES = ["a:a", "a:b", "b:a", "b:b"]


class Measurer:
    """Measures no process: the test says when that has been done."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[dict[int, Any]], None]] = []

    def ask(self, _pids: Iterable[int], learn: Callable[[dict[int, Any]], None]) -> None:
        self.waiting.append(learn)

    def is_unreadable(self, _pid: int) -> bool:
        return False

    def finish(self) -> None:
        for learn in self.waiting:
            learn({})


class Scene:
    """The methods of a daemon with routes a and b, none of whose agents was started."""

    def __init__(self, directory: Path) -> None:
        self.daemon = Daemon(directory)
        self.daemon.write("a", "b")
        self.daemon.reloader.reload()
        for agent in self.daemon.roster.agents:
            agent.stop()
        self.stops = 0
        self.orders = Orders(self.daemon.roster)
        self.measurer = Measurer()
        check: Any = SimpleNamespace(measurer=self.measurer)
        services, roster = self.daemon.services, self.daemon.roster
        self.api = Api(services, roster, self.orders, self.daemon.reloader, check, self._stop)

    def _stop(self) -> None:
        self.stops += 1

    def ask(self, method: str, **params: object) -> Answered:
        answered = Answered()
        self.api.call(method, params, answered.answer)
        return answered

    def result(self, method: str, **params: object) -> Any:
        (result,) = self.ask(method, **params).results
        return result

    def run_until(self, done: Callable[[], object]) -> None:
        loop = self.daemon.loop
        deadline = loop.now() + 10
        while not done():
            assert loop.now() < deadline, "it has not happened in time"
            loop.run_once(0.05)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.daemon.close()


def test_fake_answer_has_the_methods_of_the_real_one() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(Answer) - public(Answered) == {"was_sent", "is_open", "by_stream"}, (
        "its connection calls was_sent; taps have children"
    )
    assert Answered().is_open


def test_unknown_method_is_refused_with_those_there_are(scene: Scene) -> None:
    with pytest.raises(UsageError, match=r"there is no method 'sttaus'; there are version, status, start, .*dead_drop"):
        scene.ask("sttaus")


def test_methods_that_only_look_exist(scene: Scene) -> None:
    assert set(scene.api._methods) > READING_METHODS


@pytest.mark.parametrize("method", ["status", "top", "start", "stop", "restart", "dead_list"])
@pytest.mark.parametrize("names", ["a", [1], [["a"]], {"a": 1}])
def test_names_must_be_a_list_of_strings(scene: Scene, method: str, names: object) -> None:
    with pytest.raises(UsageError, match="names must be a list of strings"):
        scene.ask(method, names=names)


@pytest.mark.parametrize("method", ["status", "top", "start", "stop", "restart", "dead_list"])
def test_unknown_name_is_refused_with_those_there_are(scene: Scene, method: str) -> None:
    with pytest.raises(NoSuchNameError, match=r"no route or agent 'c'; there are a, a:a, a:b, b, b:a, b:b"):
        scene.ask(method, names=["a", "c"])


@pytest.mark.parametrize(
    ("names", "shown"), [([], NAMES), (["all"], NAMES), (["b"], ["b:a", "b:b"]), (["a:b", "b:a"], ["a:b", "b:a"])]
)
def test_status_shows_what_is_named(scene: Scene, names: list[str], shown: list[str]) -> None:
    document = scene.result("status", names=names)
    assert document["schema"] == 1
    assert document["daemon"]["pid"] == os.getpid()
    assert document["daemon"]["config"] == str(scene.daemon.file)
    assert [agent["name"] for route in document["routes"] for agent in route["agents"]] == shown


def test_status_and_version_say_the_same_version(scene: Scene) -> None:
    assert scene.result("version") == {"version": scene.result("status")["daemon"]["version"]}


# -- top and inspect


def test_top_answers_as_status_and_with_gauges(scene: Scene) -> None:
    answered = scene.ask("top", names=["a"])
    assert answered.results == [], "not before the processes were measured"
    scene.measurer.finish()
    (document,) = answered.results
    assert isinstance(document, dict)
    assert [route["name"] for route in document["routes"]] == ["a"]
    assert set(document) > set(scene.result("status"))


def test_top_after_its_route_went_is_an_error(scene: Scene) -> None:
    """The measurement takes time; a reload may end the route meanwhile."""
    answered, gone = scene.ask("top", names=["a"]), scene.ask("top", names=["a"])
    gone.abandon()
    scene.daemon.write("b")
    scene.daemon.reloader.reload()
    scene.daemon.roster.settle()
    scene.measurer.finish()
    assert [type(error) for error in answered.errors] == [NoSuchNameError]
    assert (gone.results, gone.errors) == ([], []), "nobody waits for it any more"


def test_inspect_of_an_agent_without_process_says_why(scene: Scene) -> None:
    (shown,) = scene.result("inspect", name="a:b")
    assert (shown["name"], shown["state"], shown["retry_in_s"]) == ("a:b", "STOPPED", None)
    assert "pid" not in shown


@pytest.mark.parametrize("name", [None, 7, ["a:b"]])
def test_inspect_needs_a_name(scene: Scene, name: object) -> None:
    with pytest.raises(UsageError, match="names must be a list of strings"):
        scene.ask("inspect", name=name)


# -- tail and events


def happen(scene: Scene, count: int, name: str = "a:b") -> None:
    for number in range(count):
        scene.daemon.log.info(name, f"line {number}")
        scene.daemon.services.events.delivery(name, f"line {number}")


def lines_of(answered: Answered, method: str) -> list[str]:
    key = "detail" if method == "events" else "message"
    return [item[key] for item in answered.items if isinstance(item, dict)]


@pytest.mark.parametrize("method", ["tail", "events"])
def test_stream_ends_after_the_last_count(scene: Scene, method: str) -> None:
    happen(scene, 30)
    last = [f"line {number}" for number in range(30)]
    assert lines_of(scene.ask(method, name="a"), method) == last[-20:], "as many if nobody says how many"
    assert lines_of(scene.ask(method, name="a:b", count=3), method) == last[-3:]
    assert lines_of(scene.ask(method, count=0), method) == []
    assert lines_of(scene.ask(method, name="b"), method).count("line 29") == 0
    assert scene.ask(method).results == [None]


@pytest.mark.parametrize("method", ["tail", "events"])
def test_followed_stream_continues_until_its_caller_leaves(scene: Scene, method: str) -> None:
    happen(scene, 3)
    answered = scene.ask(method, name="a", count=1, follow=True)
    assert answered.follows
    assert answered.results == []
    happen(scene, 1, "a:a")
    happen(scene, 1, "b:a")
    assert lines_of(answered, method) == ["line 2", "line 0"]
    subscribers = len(scene.daemon.services.events.ring._subscribers) + len(scene.daemon.log.ring._subscribers)
    answered.abandon()
    happen(scene, 1, "a:a")
    assert lines_of(answered, method) == ["line 2", "line 0"]
    after = len(scene.daemon.services.events.ring._subscribers) + len(scene.daemon.log.ring._subscribers)
    assert after == subscribers - 1, "no subscriber is left behind"


@pytest.mark.parametrize("method", ["tail", "events"])
@pytest.mark.parametrize("params", [{"name": 7}, {"name": ["a"]}, {"count": "3"}, {"count": 1.5}, {"count": None}])
def test_stream_refuses_wrong_types(scene: Scene, method: str, params: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="name must be a string, count a number"):
        scene.ask(method, **params)


@pytest.mark.parametrize("method", ["tail", "events"])
def test_stream_about_nobody_is_refused_before_it_begins(scene: Scene, method: str) -> None:
    answered = Answered()
    with pytest.raises(NoSuchNameError):
        scene.api.call(method, {"name": "c", "follow": True}, answered.answer)
    assert not answered.follows


# -- reload, shutdown and orders


def test_dry_run_of_reload_changes_nothing(scene: Scene) -> None:
    before = [*scene.daemon.roster.routes]
    scene.daemon.write("a", "c")
    plan = scene.result("reload", dry_run=True, wait=True)
    assert (plan["dry_run"], plan["start"], plan["stop"]) == (True, ("c",), ("b",))
    assert [*scene.daemon.roster.routes] == before
    assert scene.daemon.events()[1:] == []


def test_reload_that_cannot_be_read_changes_nothing(scene: Scene) -> None:
    scene.daemon.file.write_text("[route.a]\n", encoding="utf-8")
    with pytest.raises(NsbridgeError):
        scene.ask("reload")
    assert [*scene.daemon.roster.routes] == ["a", "b"]


def test_reload_answers_at_once_or_when_it_is_done(scene: Scene) -> None:
    scene.daemon.write("a")
    assert scene.result("reload")["stop"] == ("b",)
    scene.daemon.write("a", "b")
    waiting = scene.ask("reload", wait=True)
    for agent in scene.daemon.roster.agents:
        agent.stop()
    scene.run_until(lambda: waiting.results)
    assert [*scene.daemon.roster.routes] == ["a", "b"]


def test_shutdown_names_the_pid_and_stops_once(scene: Scene) -> None:
    assert scene.result("shutdown") == {"pid": os.getpid()}
    assert scene.stops == 1
    scene.daemon.roster.end()
    assert scene.result("shutdown") == {"pid": os.getpid()}, "who asks again is answered"
    assert scene.stops == 1, "a second stop would not wait for what is in flight"


@pytest.mark.parametrize("method", ["start", "stop", "restart"])
def test_order_needs_a_name(scene: Scene, method: str) -> None:
    without: list[dict[str, Any]] = [{}, {"names": []}, {"names": None}]
    for names in without:
        with pytest.raises(UsageError, match="name a route or an agent, or write all"):
            scene.ask(method, **names)


@pytest.mark.parametrize("method", ["start", "stop", "restart"])
def test_ending_daemon_takes_no_order(scene: Scene, method: str) -> None:
    scene.daemon.roster.end()
    with pytest.raises(NsbridgeError, match="the daemon is stopping"):
        scene.ask(method, names=["all"])


def test_stop_of_a_stopped_agent_is_done_already(scene: Scene) -> None:
    waited = scene.result("stop", names=["a:b"], wait=True)
    assert waited == {"agents": [{"name": "a:b", "state": "STOPPED", "phase": "stopped", "detail": ""}]}


def test_overview_has_the_same_numbers_as_status(scene: Scene) -> None:
    """In rows, so that a monitor may ask for hundreds of agents every few seconds."""
    overview, status = scene.result("overview"), scene.result("status")
    agents = [dict(zip(overview["agent_keys"], row, strict=True)) for row in overview["agents"]]
    flows = [dict(zip(overview["flow_keys"], row, strict=True)) for row in overview["flows"]]
    told = [agent for route in status["routes"] for agent in route["agents"]]
    assert [agent["name"] for agent in agents] == NAMES
    shared = ["name", "container", "endpoint", "state", "wanted", "phase", "detail", "pid", "restarts", "start_time"]
    shared += ["blocked_s", "blocked_long", "retry_in_s"]
    assert [[agent[key] for key in shared] for agent in agents] == [[agent[key] for key in shared] for agent in told]
    assert flows == [flow for route in status["routes"] for flow in route["flows"]]
    assert overview["daemon"].keys() == status["daemon"].keys()
