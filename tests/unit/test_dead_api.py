"""The control socket's answers about dead letters, over files that the test writes and agents that note orders."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nsbridge.agents.endpoints.queue.config import QueueEndpoint, QueueIn
from nsbridge.agents.endpoints.spool.config import SpoolEndpoint
from nsbridge.agents.journal.state import open_state
from nsbridge.agents.loop import Loop
from nsbridge.config.errors import NoSuchNameError, NsbridgeError, UsageError
from nsbridge.config.schema import AgentConfig, Container, Window
from nsbridge.supervisor.containers import engines
from nsbridge.supervisor.control import dead
from nsbridge.supervisor.control.dead import DeadApi
from nsbridge.supervisor.lifecycle.services import DeadLetterLimits
from nsbridge.supervisor.lifecycle.table import State
from nsbridge.supervisor.log.events import Events
from tests.answer_fake import Answered
from tests.unit.test_deadletters import EPOCH, Box

HOST = Container(engines.host.KIND, "")
ID = "orders:legacy/00000000000000aa-{}".format


class Agent:
    """The part of a managed agent that the methods use; it notes the orders that it gets."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.state = State.RUNNING
        self.orders: list[str] = []

    def send_order(self, order: str, **_fields: object) -> None:
        self.orders.append(order)


class Scene:
    """Route orders, whose source is orders:web and whose sink, orders:legacy, has letters in `box`."""

    def __init__(self, state_dir: Path) -> None:
        self.box = Box(state_dir)
        self.loop = Loop()
        self.log: list[str] = []
        self.events = Events()
        self.source = Agent(AgentConfig("orders:web", HOST, SpoolEndpoint(out="/srv/out")))
        self.sink = Agent(AgentConfig("orders:legacy", HOST, QueueEndpoint(in_=QueueIn(0x4D2))))
        self.route: Any = SimpleNamespace(
            config=SimpleNamespace(name="orders", window=Window()), agents=(self.source, self.sink)
        )
        self.routes = [self.route]
        log = SimpleNamespace(
            info=lambda _name, text: self.log.append(text), warning=lambda _name, text: self.log.append(text)
        )
        services: Any = SimpleNamespace(
            loop=self.loop, state_dir=self.box.state_dir, dead=DeadLetterLimits(), log=log, events=self.events
        )
        self.api = DeadApi(services, self.select)

    def select(self, params: dict[str, object]) -> list[tuple[Any, list[Any]]]:
        """Find agents by name, as Roster.select does."""
        names: Any = params.get("names") or ["all"]
        known = {"all", *(name for route in self.routes for name in ("orders", "orders:web", "orders:legacy"))}
        if unknown := [name for name in names if name not in known]:
            raise NoSuchNameError(f"there is no {unknown}")
        whole = {"all", "orders"} & set(names)
        return [(route, [one for one in route.agents if whole or one.config.name in names]) for route in self.routes]

    def ask(self, method: str, **params: object) -> Any:
        """Return the result, for which the loop may have to run."""
        answered = Answered()
        self.api.methods[method](params, answered.answer)
        while not answered.results and not answered.errors:
            self.loop.run_once(0)
        if answered.errors:
            raise answered.errors[0]
        return answered.results[0]

    def happened(self) -> list[tuple[str, str, str]]:
        return [(event.name, event.after, event.detail) for event in self.events.ring.recent()]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.loop.close()


# -- list and show


def test_list_shows_letters_and_what_waits_to_be_retried(scene: Scene) -> None:
    scene.box.put(7, b"hello")
    scene.box.put(8, time=None)
    scene.box.put(9)
    scene.box.give_back(9)
    answer = scene.ask("dead_list")
    assert answer["letters"][0] == {
        "id": ID(7),
        "agent": "orders:legacy",
        "epoch": EPOCH,
        "seq": 7,
        "time": "2023-11-14T22:13:20Z",
        "bytes": 5,
        "type": 3,
        "where": "queue 0x4d2",
        "why": "too long",
    }
    assert [(letter["seq"], letter["time"] is None) for letter in answer["letters"]] == [(7, False), (8, True)]
    assert (answer["more"], answer["to_be_retried"]) == (False, {"orders:web": 1})
    assert scene.ask("dead_list", names=["orders:web"])["letters"] == []


def test_list_is_bounded_and_says_so(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead, "MAX_AT_ONCE", 2)
    for seq in range(3):
        scene.box.put(seq)
    answer = scene.ask("dead_list")
    assert ([letter["seq"] for letter in answer["letters"]], answer["more"]) == ([0, 1], True)


def test_list_of_an_unknown_name_makes_no_child(scene: Scene) -> None:
    answered = Answered()
    with pytest.raises(NoSuchNameError):
        scene.api.methods["dead_list"]({"names": ["other"]}, answered.answer)
    assert (answered.results, answered.errors) == ([], [])


@pytest.mark.parametrize("number", ["7", "00000000000000aa-7"])
def test_show_has_the_body_and_its_file(scene: Scene, number: str) -> None:
    scene.box.put(7, b"\x00hello")
    shown = scene.ask("dead_show", id=f"orders:legacy/{number}")
    assert (shown["id"], shown["file"], shown["cut"]) == (ID(7), str(scene.box.body(7)), False)
    assert base64.b64decode(shown["body"]) == b"\x00hello"


def test_show_cuts_a_long_body(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead, "MAX_BODY", 4)
    scene.box.put(7, b"12345")
    shown = scene.ask("dead_show", id=ID(7))
    assert (base64.b64decode(shown["body"]), shown["cut"], shown["bytes"]) == (b"1234", True, 5)


def test_show_of_an_ambiguous_number_names_the_choice(scene: Scene) -> None:
    """A new epoch counts from 1 again."""
    scene.box.put(7)
    other = f"{EPOCH + 1:016x}-{7:020d}"
    (scene.box.path / f"{other}.json").write_text("{}")
    (scene.box.path / f"{other}.body").write_bytes(b"")
    with pytest.raises(NsbridgeError, match=rf"legacy/7 means 2 dead letters, write one of {ID(7)}, .*ab-7"):
        scene.ask("dead_show", id="orders:legacy/7")
    assert scene.ask("dead_show", id=ID(7))["seq"] == 7


@pytest.mark.parametrize("word", ["orders:legacy/8", "orders:legacy/", "orders:legacy/-7", "orders:legacy/07"])
def test_show_of_no_letter_says_so(scene: Scene, word: str) -> None:
    scene.box.put(7)
    with pytest.raises(NsbridgeError, match=rf"{word} is no dead letter; nsbridgectl dead list shows them"):
        scene.ask("dead_show", id=word)


@pytest.mark.parametrize("word", [None, "7", "orders:legacy", 7, "", "other/7", "../legacy/7"])
def test_show_of_what_names_no_agent_is_refused(scene: Scene, word: object) -> None:
    scene.box.put(7)
    with pytest.raises(NoSuchNameError):
        scene.ask("dead_show", id=word)


# -- retry and drop


@pytest.mark.parametrize("method", ["dead_retry", "dead_drop"])
@pytest.mark.parametrize("ids", [None, [], "all", [7], ["all", None], {"all": 1}])
def test_ids_must_be_a_list_of_strings(scene: Scene, method: str, ids: object) -> None:
    scene.box.put(7)
    with pytest.raises(UsageError, match="name dead letters, routes or agents, or write all"):
        scene.ask(method, ids=ids)
    assert len(scene.box.names()) == 2


@pytest.mark.parametrize("method", ["dead_retry", "dead_drop"])
@pytest.mark.parametrize("ids", [["all", "other"], ["orders:legacy/7", "orders:legacy/8"], ["all", "other/7"]])
def test_one_wrong_name_and_nothing_is_done(scene: Scene, method: str, ids: list[str]) -> None:
    scene.box.put(7)
    with pytest.raises(NsbridgeError):
        scene.ask(method, ids=ids)
    assert len(scene.box.names()) == 2
    assert scene.log == []


@pytest.mark.parametrize("word", ["all", "orders", "orders:legacy"])
def test_drop_of_all_that_an_agent_has(scene: Scene, word: str) -> None:
    for seq in (7, 8):
        scene.box.put(seq)
    assert scene.ask("dead_drop", ids=[word]) == {"done": [ID(7), ID(8)], "failed": [], "more": False, "waiting": {}}
    assert scene.box.names() == []
    assert scene.log == [f"2 dead letters were dropped, 2 B: {ID('7..8')}"]
    assert scene.happened() == [("orders:legacy", "dropped", ID("7..8"))]
    assert (scene.sink.orders, scene.source.orders) == (["letters"], []), "it may be waiting for room"


def test_letter_named_twice_is_dropped_once(scene: Scene) -> None:
    scene.box.put(7)
    answer = scene.ask("dead_drop", ids=["orders:legacy/7", ID(7), "all"])
    assert (answer["done"], answer["failed"]) == ([ID(7)], [])


def test_retry_notifies_source_and_sink(scene: Scene) -> None:
    scene.box.put(7)
    assert scene.ask("dead_retry", ids=[ID(7)]) == {"done": [ID(7)], "failed": [], "more": False, "waiting": {}}
    assert os.listdir(scene.box.retried) == [f"{scene.box.stem(7)}.3"]
    assert (scene.source.orders, scene.sink.orders) == (["retry_dead"], ["letters"])
    assert scene.happened() == [("orders:legacy", "given back", ID(7))]
    assert scene.log == [f"1 dead letter was given back to be delivered, 1 B: {ID(7)}"]


def test_retry_names_a_source_that_does_not_run(scene: Scene) -> None:
    scene.box.put(7)
    scene.source.state = State.WAITING
    assert scene.ask("dead_retry", ids=["all"])["waiting"] == {"orders:web": "WAITING"}


def test_retry_for_a_source_without_out_fails(scene: Scene) -> None:
    scene.box.put(7)
    scene.source.config = AgentConfig("orders:web", HOST, SpoolEndpoint(in_="/srv/in"))
    (failed,) = scene.ask("dead_retry", ids=["all"])["failed"]
    assert failed == {"id": ID(7), "error": f"{ID(7)}: orders:web does not send any more; it can only be dropped"}
    assert (scene.source.orders, scene.sink.orders) == ([], [])


@pytest.mark.parametrize(("handed", "may"), [(6, False), (7, True)])
def test_letter_that_is_just_put_aside_is_not_retried(scene: Scene, handed: int, may: bool) -> None:
    """After a kill the sink writes the letter again, until it has noted that the message is done with."""
    scene.box.put(7)
    files = open_state(scene.box.state_dir, scene.sink.config, Window(), pytest.fail)
    assert files.sink is not None
    files.sink.adopt(EPOCH, handed)
    for fd in files.given:
        os.close(fd)
    files.sink.close()
    answer = scene.ask("dead_retry", ids=["all"])
    assert answer["done"] == ([ID(7)] if may else [])
    errors = [] if may else [f"{ID(7)}: orders:legacy is putting it aside just now; try it again"]
    assert [failed["error"] for failed in answer["failed"]] == errors


def test_failures_do_not_stop_the_others(scene: Scene) -> None:
    scene.box.put(7, type=None)
    scene.box.put(8)
    answer = scene.ask("dead_retry", ids=["all"])
    assert answer["done"] == [ID(8)]
    assert [failed["id"] for failed in answer["failed"]] == [ID(7)]


def test_letter_that_vanished_fails_only_if_it_was_named(scene: Scene) -> None:
    """Its body has gone, as if the agent's user had removed it after the names were read."""
    scene.box.put(7)
    scene.box.body(7).unlink()
    assert scene.ask("dead_drop", ids=["all"]) == {"done": [], "failed": [], "more": False, "waiting": {}}
    error = f"{ID(7)} is not a dead letter any more; nsbridgectl dead list shows them"
    assert scene.ask("dead_drop", ids=[ID(7)])["failed"] == [{"id": ID(7), "error": error}]


def test_one_request_handles_a_bounded_number(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead, "MAX_AT_ONCE", 2)
    for seq in range(5):
        scene.box.put(seq)
    assert [len(scene.ask("dead_drop", ids=["all"])["done"]) for _ in range(3)] == [2, 2, 1]
    assert not scene.ask("dead_drop", ids=["all"])["more"]


def test_many_letters_leave_the_loop_its_turns(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One letter a turn here; what else is due comes between."""
    monkeypatch.setattr(dead, "SLICE", 0.0)
    for seq in range(5):
        scene.box.put(seq)
    answered, left = Answered(), []
    scene.api.methods["dead_drop"]({"ids": ["all"]}, answered.answer)
    while not answered.results:
        left.append(len(scene.box.names()) // 2)
        scene.loop.run_once(0)
    assert left == [4, 3, 2, 1]


def test_route_that_a_reload_took_away_meanwhile_is_an_error(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead, "SLICE", 0.0)
    for seq in range(3):
        scene.box.put(seq)
    answered = Answered()
    scene.api.methods["dead_drop"]({"ids": ["all"]}, answered.answer)
    scene.routes.clear()
    while not answered.results:
        scene.loop.run_once(0)
    (answer,) = answered.results
    assert isinstance(answer, dict)
    assert answer["done"] == [ID(seq) for seq in range(3)], "its letters are still there to be dropped"
    assert scene.sink.orders == [], "an agent that has gone is not notified"


def test_letter_that_was_put_aside_since_is_left_alone(scene: Scene) -> None:
    """A letter that cannot be delivered is put aside again: one command must not give it back again and again."""
    scene.box.put(7)
    scene.box.put(8, time=None)
    answer = scene.ask("dead_drop", ids=["all"], before=1.0)
    assert answer["done"] == [ID(8)]
    assert scene.ask("dead_drop", ids=[ID(7)], before=1.0)["done"] == [ID(7)], "it is named"
    with pytest.raises(UsageError):
        scene.ask("dead_drop", ids=["all"], before="now")
