"""Events as programs get them: each event's fields, their order, how many are kept."""

from __future__ import annotations

from nsbridge.supervisor.log.events import KEPT, Events, Happening


def test_an_event_has_time_name_kind_before_after_and_detail() -> None:
    events = Events(clock=lambda: 1764100000.25)
    events.state("orders:web", "STARTING", "RUNNING", "")
    events.delivery("orders:web", "queue full")
    events.delivery("orders:web", "")
    events.reload("start a; 0 unchanged")
    events.daemon("stopping")
    items = [happening.item() for happening in events.ring.recent()]
    assert {item.pop("time") for item in items} == {"2025-11-25T19:46:40.250Z"}
    assert [tuple(item.values()) for item in items] == [
        ("orders:web", "state", "STARTING", "RUNNING", ""),
        ("orders:web", "delivery", "relaying", "blocked", "queue full"),
        ("orders:web", "delivery", "blocked", "relaying", ""),
        ("", "reload", "", "", "start a; 0 unchanged"),
        ("", "daemon", "", "stopping", ""),
    ]
    assert list(items[0]) == ["name", "event", "from", "to", "detail"]


def test_what_a_container_could_have_named_is_escaped() -> None:
    events = Events()
    events.delivery("orders:web", "\x1b[2J\nfake")
    assert events.ring.recent()[0].detail == r"\x1b[2J\nfake"


def test_the_last_are_kept_and_everybody_hears_all_in_order() -> None:
    events = Events()
    heard: list[Happening] = []
    end = events.ring.subscribe(heard.append)
    for number in range(KEPT + 5):
        events.state(f"r:{number}", "A", "B", "")
    assert [happening.name for happening in heard] == [f"r:{number}" for number in range(KEPT + 5)]
    assert events.ring.recent() == heard[5:]
    end()
    events.daemon("stopping")
    assert len(heard) == KEPT + 5


def test_a_route_s_events_are_those_of_its_agents() -> None:
    events = Events()
    for name in ("orders:web", "orders2:web", "", "orders:legacy"):
        events.state(name, "A", "B", "")
    assert [happening.name for happening in events.ring.recent(name="orders")] == ["orders:web", "orders:legacy"]
    assert [happening.name for happening in events.ring.recent(1, "orders")] == ["orders:legacy"]
