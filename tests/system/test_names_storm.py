"""Spools whose files keep their names, under kills: the short form of names_storm.py; and `error` in a container."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nsbridge.supervisor.cli.client import ControlClient
from tests.system import names_storm
from tests.system.names_storm import NAMES, Audit, in_containers, kept
from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until

USER = 54321  # no user of this host


@pytest.mark.alone
def test_kills_lose_repeat_and_rename_nothing() -> None:
    outcome = names_storm.run(20, seed=20)
    print(outcome)
    assert outcome.problems == []
    assert outcome.strikes.total() == 20


def test_the_audit_finds_a_repeat_and_a_wrong_name() -> None:
    audit = Audit()
    for name in NAMES["rest"]:
        audit.see("rest", kept("rest", name), b"%d %s x" % (audit.received + 1, name))
    assert audit.problems == []
    audit.see("rest", b"a.hl7", b"1 a x")
    audit.see("rest", b"a", b"100 a x")
    audit.see("rest", b"b c.hl7", b"101 a x")
    assert len(audit.problems) == 3


def put_odd_files(out: Path) -> None:
    """Put files that can never be taken: too large, three that are no file, and one of root's."""
    (out / "a.xml").write_bytes(bytes(2001))
    os.mkfifo(out / "b.xml")
    (out / "c.xml").symlink_to("/etc/passwd")
    fd = os.open(out, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{fd}/d.xml")
    os.close(fd)
    (out / ".e").write_bytes(b"secret")
    (out / ".e").chmod(0o600)
    (out / ".e").rename(out / "e.xml")


def test_refused_files_are_moved_and_reported(tmp_path: Path) -> None:
    """The agent has all its confinement, and is the container's own user. A link is not followed."""
    tmp_path.chmod(0o711)
    with in_containers(tmp_path) as (one, two):
        out, error = (one.rootfs / "srv" / name for name in ("out", "error"))
        for path in (out, two.rootfs / "srv" / "in"):
            path.mkdir(parents=True)
        for path in (out.parent, out):
            os.chown(path, USER, USER)
        routes = names_storm.ROUTES.format(one=one.spec, two=two.spec)
        with Nsbridged(tmp_path, routes, 'require = ["seccomp", "landlock"]') as daemon:
            daemon.wait_for("RUNNING")
            put_odd_files(out)
            expected = sorted(name + end for name in ("a.xml", "b.xml", "c.xml", "d.xml") for end in ("", ".reason"))
            wait_until(lambda: sorted(os.listdir(error)) == expected, f"they are moved; {daemon.said()}")
            wait_until(lambda: daemon.flow("xml:from")["refused"] == 5, "they are counted")
            assert daemon.flow("xml:from")["refused_now"] == 1
            assert daemon.flow("rest:from")["refused"] == 0
            with ControlClient(str(daemon.socket), 10) as client:
                happened = list(client.stream("events", {"count": 100}))
        moved = [item["to"] for item in happened if item["event"] == "refused"]
        assert sorted(moved) == ["left", *["moved"] * 4]
        assert "/srv/out/a.xml has more than max_message = 2000 bytes; moved to /srv/error/a.xml" in daemon.said()
        assert (error / "c.xml").is_symlink()
