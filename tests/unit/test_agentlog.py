"""Lines of an agent for the log, and lines of the log about its end."""

from __future__ import annotations

from nsbridge.config.schema import LogConfig
from nsbridge.supervisor.lifecycle.agentlog import AgentLog, LineBudget
from nsbridge.supervisor.log.events import Events
from nsbridge.supervisor.log.log import Log, open_log


def _agent_log() -> tuple[AgentLog, Log, Events]:
    log, events = open_log(LogConfig(file="/dev/null")), Events()
    return AgentLog(log, events, "orders:legacy"), log, events


def _lines(log: Log) -> list[str]:
    return [f"{entry.item()['level']} {entry.item()['message']}" for entry in log.ring.recent(10, "orders:legacy")]


def test_lines_beyond_the_budget_are_counted() -> None:
    budget, logged = LineBudget(), list[str]()
    assert sum(budget.spend(0.0, logged.append) for _ in range(1000)) == 50
    assert not logged
    assert budget.spend(1.0, logged.append)
    assert logged == ["950 lines before this were not logged"]


def test_a_dead_letter_is_logged_with_what_to_do_and_is_an_event() -> None:
    agent_log, log, events = _agent_log()
    agent_log.log_report({"report": "dead", "text": "message 3: queue 0x4d2: 9000 bytes are more"}, 0.0)
    assert _lines(log) == ["WARNING dead letter: message 3: queue 0x4d2: 9000 bytes are more (nsbridgectl dead list)"]
    (event,) = events.ring.recent(10, "orders:legacy")
    assert (event.event, event.after, event.detail) == ("dead", "aside", "message 3: queue 0x4d2: 9000 bytes are more")


def test_a_refused_file_is_logged_and_is_an_event() -> None:
    agent_log, log, events = _agent_log()
    for moved in (True, False, "yes"):
        agent_log.log_report({"report": "refused", "text": "/out/a is a FIFO", "moved": moved}, 0.0)
    assert _lines(log) == ["WARNING /out/a is a FIFO"] * 3
    happened = [(event.event, event.after, event.detail) for event in events.ring.recent(10, "orders:legacy")]
    assert happened == [("refused", after, "/out/a is a FIFO") for after in ("moved", "left", "left")]


def test_what_was_left_behind_is_logged_with_its_place() -> None:
    agent_log, log, _ = _agent_log()
    for pending in (0, 1, 1200):
        agent_log.left_behind(pending, "/run/x.out")
    assert _lines(log) == [
        "WARNING 1 message waits in /run/x.out to be delivered when it runs again",
        "WARNING 1,200 messages wait in /run/x.out to be delivered when it runs again",
    ]
