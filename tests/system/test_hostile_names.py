"""Names, messages and reasons that would act on a terminal or forge a line of the log come out escaped, everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.hostile import is_clean
from tests.system.hostile_scene import Scene, scene
from tests.system.room import LIMIT, run, wait_until

NAMES = {
    b"line\n2026-01-01T00:00:00.000Z ERROR nsbridged forged": rb"line\n2026-01-01T00:00:00.000Z ERROR nsbridged forged",
    b"title\x1b]0;owned\x07": rb"title\x1b]0;owned\x07",
    b"clear\x1b[2J\x1b[H": rb"clear\x1b[2J\x1b[H",
    b"c1\xc2\x9b31m": rb"c1\x9b31m",
    b"invalid\xff\xfe\x80": rb"invalid\xff\xfe\x80",
    b"right to left\xe2\x80\xae": rb"right to left\u202e",
    b"return\rover": rb"return\rover",
}
COMMANDS = (
    ("status",),
    ("status", "--json"),
    ("tail",),
    ("tail", "--json"),
    ("events",),
    ("events", "--json"),
    ("inspect", "s:evil"),
    ("inspect", "s:evil", "--json"),
    ("dead", "list"),
    ("dead", "list", "--json"),
)


def ctl(played: Scene, *words: str) -> subprocess.CompletedProcess[bytes]:
    command = [str(Path(sys.executable).with_name("nsbridgectl")), "-s", str(played.daemon.socket), *words]
    return subprocess.run(command, capture_output=True, timeout=LIMIT, check=False)


def everything_printed_is_clean(played: Scene) -> None:
    for words in COMMANDS:
        done = ctl(played, *words)
        assert done.returncode in (0, 3), done
        assert is_clean(done.stdout), words
        assert is_clean(done.stderr), words
        if "--json" in words and words[0] not in ("tail", "events"):
            json.loads(done.stdout)
    assert is_clean(played.daemon.log.read_bytes())
    assert b"\n2026-01-01" not in played.daemon.log.read_bytes()


def test_hostile_names_reach_log_and_terminal_escaped(tmp_path: Path, runc_container: Factory) -> None:
    """Names of refused files, and of one that cannot be removed (so status names it), are escaped in all output."""
    with scene(tmp_path, runc_container) as played:
        out = os.fsencode(played.evil / "s/out")
        for name in NAMES:
            os.mkfifo(out + b"/." + name)
            os.rename(out + b"/." + name, out + b"/" + name)
        for name, escaped in NAMES.items():
            refused = b"/srv/s/out/" + escaped + b" is a FIFO, not a regular file"
            wait_until(lambda: refused in played.daemon.log.read_bytes(), f"{name!r} is refused")  # noqa: B023
        kept = b"z\x1b[2J\n\xff"
        beside = os.fsencode(played.evil / "s") + b"/" + kept
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT, 0o600))
        run(["chattr", "+a", os.fsdecode(out)])  # append only: files may be added, none removed
        try:
            os.rename(beside, out + b"/" + kept)
            wait_until(lambda: played.agent("s:evil")["phase"] == "blocked", "it cannot be removed")
            assert rb"z\x1b[2J\n\xff: Operation not permitted" in ctl(played, "status").stdout
            everything_printed_is_clean(played)
        finally:
            run(["chattr", "-a", os.fsdecode(out)])
        played.healthy_passes()


def test_hostile_names_of_messages_are_messages(tmp_path: Path, runc_container: Factory) -> None:
    """Their files move to `done` under their names."""
    with scene(tmp_path, runc_container) as played:
        out = os.fsencode(played.evil / "s/out")
        for name in NAMES:
            (played.evil / "part").write_bytes(name)
            os.rename(os.fsencode(played.evil / "part"), out + b"/" + name)
        wait_until(lambda: len(os.listdir(played.peer / "s/in")) == len(NAMES), "all arrive")
        assert {path.read_bytes() for path in (played.peer / "s/in").iterdir()} == set(NAMES)
        wait_until(lambda: set(os.listdir(os.fsencode(played.evil / "s/done"))) == set(NAMES), "all are moved")
        assert is_clean(played.daemon.log.read_bytes())


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_hostile_message_as_a_dead_letter_is_shown_escaped(
    tmp_path: Path, runc_container: Factory, form: tuple[str, ...]
) -> None:
    with scene(tmp_path, runc_container, "dead") as played:
        body = b"\x1b[2Jnew\nline\xff\x9b\x07"
        (played.evil / "part").write_bytes(body)
        (played.evil / "part").rename(played.evil / "dead/out/1")
        wait_until(
            lambda: played.daemon.call("dead_list", names=[])["letters"], "a newline cannot go into a log of lines"
        )
        (letter,) = played.daemon.call("dead_list", names=[])["letters"]
        for words in (("dead", "list"), ("dead", "show", letter["id"])):
            done = ctl(played, *words, *form)
            assert done.returncode == 0
            assert is_clean(done.stdout)
        played.healthy_passes()
