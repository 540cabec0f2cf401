"""Text that `inspect` prints for people."""

from __future__ import annotations

from nsbridge.supervisor.cli import inspect as inspectview
from tests.control_fake import inspected


def test_an_agent_fits_a_screen_and_its_senders_stand_apart() -> None:
    assert inspectview.lines(inspected()) == [
        "orders:legacy  RUNNING",
        "  process       pid 4711, sleeping, 1 thread, up 1:01:01, child of 4242",
        "  user          1000:1000/0",
        "  memory        5.9 MB its own, 26.5 MB resident",
        "  cpu           0.05 %, 1.5 s user, 0.5 s system",
        "  confined by   seccomp (filter), landlock, no_new_privs",
        "  capabilities  none",
        "  container's   ipc 11",
        "  host's        mnt 12, pid 14",
        "  of both       net 13",
        r"  2 files       0 /dev/null, 3 /x\x1b[2J",
        "  sender 0      pid 4712, sleeping, 1 thread, up 1:01:01, 5.9 MB its own,",
        "                0.05 % cpu, 2 descriptors",
    ]


def test_one_without_a_process_says_why() -> None:
    waiting = {"name": "orders:web", "state": "WAITING", "phase": "waiting", "detail": "no such\ncontainer"}
    assert inspectview.lines({**waiting, "retry_in_s": 1.25}) == [
        r"orders:web  WAITING (no such\ncontainer)",
        "  process       none, next try in 1.2 s",
    ]
    assert inspectview.lines({**waiting, "retry_in_s": None})[1] == "  process       none"


def test_power_that_is_left_and_what_is_not_listed_are_shown() -> None:
    strong = inspected(
        capabilities={"effective": ["chown", "kill"], "bounding": []},
        seccomp="off",
        landlock=False,
        no_new_privs=False,
        descriptors={"count": 300, "open": [{"fd": 0, "target": "/"}]},
        senders=[],
    )
    text = inspectview.lines(strong)
    assert "  confined by   nothing" in text
    assert "  capabilities  effective: chown kill" in text
    assert "  300 files     0 /, and 299 more" in text
