"""Exactly-once under SIGKILL at random instants: the short form of storm.py; and that its audit finds each fault.

docs/storm.md has the long form, which `make storm` runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system import storm
from tests.system.storm_kinds import Got, Log, Queue, Spool, Stop
from tests.system.storm_outcome import Direction, Plan, report
from tests.system.storm_program import Audit, make, parse

pytestmark = pytest.mark.alone  # it makes the load itself

STRIKES = 210
SEED = 20


@pytest.mark.parametrize("plan", storm.plans(STRIKES, 0, SEED), ids=str)
def test_kills_lose_repeat_reorder_and_damage_no_message(plan: Plan) -> None:
    """Both directions at full load; with at-least-once a repeat for each kill of who sends into a queue is allowed."""
    outcome = storm.run(plan)
    print(report([outcome], "unshare", plan.seed))
    assert outcome.problems() == []
    assert outcome.strikes.total() >= plan.strikes


def test_a_storm_over_containers_of_runc() -> None:
    """The same, where the spool is on a disk and the namespaces are a real engine's."""
    plan = Plan(("spool", "queue"), "exactly-once", 20, seed=SEED)
    outcome = storm.run(plan, "runc")
    print(report([outcome], "runc", plan.seed))
    assert outcome.problems() == []


@pytest.fixture
def audit() -> Audit:
    """Return an audit that has seen the messages 1, 2 and 3."""
    audit = Audit()
    for seq in (1, 2, 3):
        audit.see(QUEUE, Got(1, make(seq, 1, b"x")))
    return audit


QUEUE, SPOOL = Queue.__new__(Queue), Spool.__new__(Spool)  # only their types are asked


def test_the_audit_finds_a_lost_message(audit: Audit) -> None:
    audit.see(QUEUE, Got(1, make(5, 1, b"")))
    assert (audit.missing, audit.count, audit.out_of_order) == (1, 4, 0)


def test_the_audit_finds_a_repeated_message(audit: Audit) -> None:
    audit.see(QUEUE, Got(1, make(2, 1, b"x")))
    assert (audit.repeated, audit.count) == (1, 3)


def test_the_audit_finds_exchanged_messages(audit: Audit) -> None:
    audit.see(QUEUE, Got(1, make(5, 1, b"")))
    audit.see(QUEUE, Got(1, make(4, 1, b"")))
    assert (audit.out_of_order, audit.missing, audit.count) == (1, 0, 5)


def test_the_audit_finds_a_damaged_message(audit: Audit) -> None:
    whole = make(4, 1, b"abc\0\xff d")
    assert parse(whole) == (4, 1)
    for damaged in (whole[:-1], whole + b"x", whole.replace(b"4", b"5", 1), whole.replace(b" 1 ", b" 2 "), b"", b"   "):
        audit.see(QUEUE, Got(1, damaged))
    assert (audit.corrupt, audit.count) == (6, 3)


def test_the_audit_finds_a_wrong_type(audit: Audit) -> None:
    audit.see(QUEUE, Got(2, make(4, 1, b"")))
    audit.see(QUEUE, Got(1, make(5, 0, b"")))  # a file's, which a queue gets as type 1
    audit.see(SPOOL, Got(1, make(6, 0, b"")))
    assert (audit.wrong_type, audit.count) == (2, 6)


def test_a_storm_names_each_broken_promise() -> None:
    """Counts of status are compared with those of the programs."""
    audit = dict.fromkeys(("bytes", "repeated", "out_of_order", "corrupt", "wrong_type", "missing"), 0) | {"count": 10}
    flow = {"delivered": 10, "pending": 0, "bytes": 90, "in_doubt": 0, "dead": 0}

    def problems(audit_says: dict[str, int], flow_says: dict[str, int], allowed: int = 0) -> int:
        return len(list(Direction("d", 10, 100, audit | audit_says, flow | flow_says, allowed).problems()))

    assert problems({}, {}) == 0
    assert problems({"repeated": 2}, {}, 2) == 0
    for audit_says in ({"count": 9}, {"repeated": 1}, {"out_of_order": 1}, {"corrupt": 1}, {"wrong_type": 1}):
        assert problems(audit_says, {}) == 1, audit_says
    for flow_says in ({"delivered": 9}, {"pending": 1}, {"bytes": 101}, {"in_doubt": 1}, {"dead": 1}):
        assert problems({}, flow_says) == 1, flow_says


def test_the_consumer_of_a_spool_stops_only_when_nothing_is_left(tmp_path: Path) -> None:
    """All files in the order of their names, with the type of their suffix, and each only once."""
    spool = Spool(str(tmp_path), Stop.__new__(Stop))
    for name in ("2.7", "1.5", ".hidden"):
        (tmp_path / name).write_bytes(name.encode())
    assert spool.get() == [Got(5, b"1.5"), Got(7, b"2.7")]
    assert spool.get() == []


def test_the_consumer_of_a_log_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"), Stop.__new__(Stop))
    for written, got in ((b"1\n\n2", [b"1", b""]), (b"", []), (b"3\n", [b"23"])):
        with (tmp_path / "log").open("ab") as file:
            file.write(written)
        assert [message.body for message in log.get()] == got
    log.close()
