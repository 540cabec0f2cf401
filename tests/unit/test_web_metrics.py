"""The text for Prometheus: the series of the interface, their values, and what has none."""

from __future__ import annotations

import os
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from nsbridge.supervisor.cli.web import metrics, snapshot
from nsbridge.supervisor.lifecycle.table import State
from tests.control_fake import agent, flow, overview_of, status_document

OPEN = "application/openmetrics-text; version=1.0.0"
WEB_TO_LEGACY = {"route": "orders", "source": "orders:web", "sink": "orders:legacy"}


def document(*agents: dict[str, Any], **flow_facts: object) -> snapshot.Snapshot:
    facts: dict[str, Any] = {"missed": 0, "missed_bytes": 0, "dead_dropped": 0, "oldest_pending_s": None} | flow_facts
    flows = (flow("orders:web", "orders:legacy", **facts), flow("orders:legacy", "orders:web", **facts))
    return snapshot.parse(overview_of(status_document(*(agents or _two()), flows=flows)))


def _two() -> tuple[dict[str, Any], dict[str, Any]]:
    return agent("orders:web", start_time=1_700_000_000.5, descriptors=31), agent("orders:legacy", pid=None)


def samples(
    found: snapshot.Snapshot | None, *, sees_pids: bool = False
) -> dict[str, list[tuple[dict[str, str], float]]]:
    text, kind = metrics.text(found, sees_pids=sees_pids)
    assert kind.startswith("text/plain; version=0.0.4")
    collected: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            collected.setdefault(sample.name, []).append((sample.labels, sample.value))
    return collected


def test_daemon_that_is_away_is_one_series() -> None:
    assert samples(None) == {"nsbridge_up": [({}, 0.0)]}


def test_states_are_those_of_the_lifecycle() -> None:
    assert set(metrics.STATES) == {state.value for state in State}


def test_every_series_of_the_interface_is_there() -> None:
    names = {
        "nsbridge_up",
        "nsbridge_build_info",
        "nsbridge_agent_state",
        "nsbridge_agent_blocked",
        "nsbridge_agent_restarts_total",
        "nsbridge_agent_start_time_seconds",
        "nsbridge_flow_delivered_messages_total",
        "nsbridge_flow_delivered_bytes_total",
        "nsbridge_flow_pending_messages",
        "nsbridge_flow_oldest_pending_seconds",
        "nsbridge_flow_repeats_dropped_total",
        "nsbridge_flow_in_doubt_total",
        "nsbridge_flow_dead_letters",
        "nsbridge_flow_dead_letters_total",
        "nsbridge_flow_refused_total",
    }
    assert names <= samples(document()).keys()


def test_state_is_1_in_one_series_of_each_agent() -> None:
    found = samples(document(agent("orders:web"), agent("orders:legacy", state="WAITING")))["nsbridge_agent_state"]
    assert len(found) == 2 * len(metrics.STATES)
    assert [labels for labels, value in found if value] == [
        {"route": "orders", "agent": "orders:web", "state": "RUNNING"},
        {"route": "orders", "agent": "orders:legacy", "state": "WAITING"},
    ]


def test_numbers_of_a_flow_are_those_of_status() -> None:
    facts = {
        "delivered": 12031,
        "bytes": 1 << 40,
        "pending": 2,
        "repeats_dropped": 3,
        "in_doubt": 4,
        "dead": 5,
        "dead_letters": 6,
        "refused": 7,
        "refused_now": 1,
        "oldest_pending_s": 8.5,
        "dead_dropped": 9,
    }
    found = samples(document(**facts))
    values = {name: dict_of[WEB_TO_LEGACY["sink"]] for name, dict_of in _by_sink(found).items()}
    assert values == {
        "nsbridge_flow_delivered_messages_total": 12031,
        "nsbridge_flow_delivered_bytes_total": 1 << 40,
        "nsbridge_flow_pending_messages": 2,
        "nsbridge_flow_repeats_dropped_total": 3,
        "nsbridge_flow_in_doubt_total": 4,
        "nsbridge_flow_dead_letters_total": 5,
        "nsbridge_flow_dead_letters": 6,
        "nsbridge_flow_refused_files": 1,
        "nsbridge_flow_refused_total": 7,
        "nsbridge_flow_oldest_pending_seconds": 8.5,
        "nsbridge_flow_dead_letters_dropped_total": 9,
        "nsbridge_flow_missed_total": 0,
        "nsbridge_flow_missed_bytes_total": 0,
    }


def _by_sink(found: dict[str, list[tuple[dict[str, str], float]]]) -> dict[str, dict[str, float]]:
    flows = {name: rows for name, rows in found.items() if name.startswith("nsbridge_flow")}
    return {name: {labels["sink"]: value for labels, value in rows} for name, rows in flows.items()}


def test_flow_has_the_names_of_its_ends_as_labels() -> None:
    labels = [labels for labels, _ in samples(document())["nsbridge_flow_pending_messages"]]
    assert labels[0] == WEB_TO_LEGACY


def test_age_is_0_where_nothing_waits() -> None:
    assert {value for _, value in samples(document())["nsbridge_flow_oldest_pending_seconds"]} == {0.0}


def test_unknown_value_has_no_sample() -> None:
    found = samples(document(dead_letters=None))
    assert "nsbridge_flow_dead_letters" not in found
    starts = found["nsbridge_agent_start_time_seconds"]
    assert starts == [({"route": "orders", "agent": "orders:web"}, 1_700_000_000.5)]


def test_daemon_without_a_number_has_no_series_of_it() -> None:
    old = document()
    for one in old.flows:
        del one["oldest_pending_s"], one["refused"]
    assert not {"nsbridge_flow_oldest_pending_seconds", "nsbridge_flow_refused_total"} & samples(old).keys()


def test_processes_are_measured_in_the_same_pid_namespace() -> None:
    found = document(agent("orders:web", pid=os.getpid(), senders=[1]), agent("orders:legacy", pid=None))
    found.daemon["pid"] = os.getpid()
    assert "nsbridge_agent_cpu_seconds_total" not in samples(found)
    measured = samples(found, sees_pids=True)
    ((labels, cpu),) = measured["nsbridge_agent_cpu_seconds_total"]
    assert labels == {"route": "orders", "agent": "orders:web"}
    assert cpu > 0
    assert measured["nsbridge_supervisor_resident_memory_bytes"][0][1] > 1 << 20


def test_sender_is_counted_only_if_it_is_the_agent_s_child() -> None:
    mine, alone = snapshot.usage(os.getpid(), [1, os.getppid()]), snapshot.usage(os.getpid())
    assert mine is not None
    assert alone is not None
    assert abs(mine.resident - alone.resident) < 1 << 20
    assert snapshot.usage(None) is None


def test_openmetrics_is_valid_and_has_the_same_samples() -> None:
    text, kind = metrics.text(document(dead=5, dead_letters=2), OPEN, sees_pids=False)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    families = list(openmetrics.text_string_to_metric_families(text.decode()))  # type: ignore[no-untyped-call]
    names = {sample.name for family in families for sample in family.samples}
    assert names == samples(document()).keys()


@pytest.mark.parametrize("detail", ['a"b\\c\nd', "\x1b[2J", "\udc80"])
def test_reason_is_never_a_label(detail: str) -> None:
    text, _ = metrics.text(document(agent("orders:web", phase="blocked", detail=detail)), sees_pids=False)
    assert b'nsbridge_agent_blocked{agent="orders:web",route="orders"} 1.0' in text
    assert detail.encode("utf-8", "surrogateescape") not in text
