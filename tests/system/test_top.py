"""`nsbridgectl top` as a person sees it: at a terminal that is resized, suspended, hung up; and without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nsbridge.supervisor.cli.topscreen import _ENTER, _LEAVE
from tests.control_fake import (
    DEADLINE,
    FakeApi,
    Served,
    agent,
    called,
    ctl,
    daemon,
    flow,
    process,
    top_answer,
)
from tests.system.room import wait_until
from tests.system.terminal import Terminal

CTL = str(Path(sys.executable).with_name("nsbridgectl"))
STEP = 250  # messages between two answers, which are one second apart by their own clock


def _busy(api: FakeApi) -> None:
    """Return 20 routes; orders:web sends 250 messages of 100 bytes a second, and its CPU is at 50 %."""
    asked = 0

    def answer() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        agents = (agent("orders:web", detail="x\x1b[2J"), agent("orders:legacy", container="runc:legacy"))
        others = tuple(agent(f"other{number:02}:web", state="WAITING") for number in range(40))
        moved = flow("orders:web", "orders:legacy", delivered=STEP * asked, bytes=100 * STEP * asked, pending=2)
        used = {"orders:web": process(float(asked), cpu_s=asked / 2), "orders:legacy": process(float(asked))}
        return top_answer(float(asked), agents + others, (moved,), used)

    api.results["top"] = answer


@pytest.fixture
def busy() -> Iterator[str]:
    with daemon(_busy) as path:
        yield path


def _top(path: str, *arguments: str, size: tuple[int, int] = (80, 24)) -> Terminal:
    return Terminal([CTL, "-s", path, "top", *arguments], size)


def _assert_put_back(terminal: Terminal) -> None:
    """Assert that it has left the alternate screen last, and that the terminal's settings are as they were."""
    assert terminal.shown.count(_ENTER) == terminal.shown.count(_LEAVE)
    assert terminal.shown.rindex(_LEAVE) > terminal.shown.rindex(_ENTER)
    assert termios.tcgetattr(terminal.keyboard) == terminal.settings


# -- live


def test_it_shows_rates_and_refreshes_by_itself_until_q(busy: str) -> None:
    with _top(busy, "-d", "0.2") as terminal:
        terminal.see(_ENTER)
        for _ in range(3):
            terminal.see("messages: 250/s, 24K bytes/s, 2 pending")
            terminal.see("orders:web    RUNNING     250      0     24K       0    50   10M")
        terminal.type(b"q")
        assert terminal.end() == 0
        _assert_put_back(terminal)


def test_a_frame_overwrites_the_one_before_without_flicker(busy: str) -> None:
    with _top(busy, "-d", "0.1") as terminal:
        for _ in range(3):
            terminal.see("\x1b[Hnsbridged")
        terminal.type(b"q")
        terminal.end()
        assert "\x1b[2J" not in terminal.shown


def test_lines_fit_the_terminal_and_names_are_escaped(busy: str) -> None:
    with _top(busy, size=(80, 24)) as terminal:
        terminal.see("250/s")
        terminal.see("\x1b[J")
        frame = terminal.shown.rpartition("\x1b[H")[2].partition("\x1b[J")[0]
        lines = frame.replace("\x1b[K", "").replace("\x1b[7m", "").replace("\x1b[0m", "").replace("\r", "").split("\n")
        assert len(lines) == 24
        assert [line for line in lines if len(line) >= 80 or not line.isprintable()] == []
        terminal.type(b"q")
        assert terminal.end() == 0


def test_keys_sort_scroll_and_turn_the_order(busy: str) -> None:
    with _top(busy, "--sort", "name") as terminal:
        terminal.see("orders:legacy")
        terminal.type(b"\x1b[6~")  # page down
        terminal.see("\x1b[Hnsbridged")
        terminal.see("PENDING")
        terminal.see("other17:web")
        terminal.type(b"n")
        terminal.see("PENDING")
        terminal.see("other39:web")  # turned round, the last name comes first
        terminal.type(b"c")
        terminal.see("[C]PU")
        terminal.type(b"q")
        assert terminal.end() == 0


def test_a_resized_terminal_is_filled_at_once(busy: str) -> None:
    with _top(busy, "-d", "3600") as terminal:
        terminal.see("[q]uit")
        terminal.see("[q]uit")  # the second look, soon after the first
        terminal.resize(120, 10)
        terminal.see("runc:legacy spool")
        terminal.see("[q]uit")
        assert terminal.shown.rpartition("\x1b[H")[2].count("\n") == 9
        terminal.type(b"q")
        assert terminal.end() == 0


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["INT", "TERM", "HUP"]
)
def test_a_signal_ends_it_and_the_terminal_is_as_it_was(busy: str, signum: signal.Signals, code: int) -> None:
    with _top(busy) as terminal:
        terminal.see("[q]uit")
        terminal.process.send_signal(signum)
        assert terminal.end() == code
        _assert_put_back(terminal)
        assert "Traceback" not in terminal.shown


def test_ctrl_c_is_a_way_to_end_it(busy: str) -> None:
    with _top(busy) as terminal:
        terminal.see("[q]uit")
        terminal.type(b"\x03")
        assert terminal.end() == 0
        _assert_put_back(terminal)


def test_ctrl_z_gives_the_terminal_back_until_it_is_continued(busy: str) -> None:
    with _top(busy) as terminal:
        terminal.see("[q]uit")
        terminal.type(b"\x1a")
        terminal.see(_LEAVE)
        shown = psutil.Process(terminal.process.pid)
        wait_until(lambda: shown.status() == psutil.STATUS_STOPPED, "it is stopped")
        assert termios.tcgetattr(terminal.keyboard) == terminal.settings
        terminal.process.send_signal(signal.SIGCONT)
        terminal.see(_ENTER)
        terminal.see("[q]uit")
        terminal.type(b"q")
        assert terminal.end() == 0
        _assert_put_back(terminal)


def test_a_lost_daemon_is_reported_on_the_original_screen() -> None:
    def dying(api: FakeApi) -> None:
        answers = [top_answer(1.0, (agent("a:b"),), (), {})]
        api.results["top"] = lambda: answers.pop() if answers else os._exit(0)

    with daemon(dying) as path, _top(path, "-d", "0.1") as terminal:
        terminal.see("[q]uit")
        assert terminal.end() == 4
        _assert_put_back(terminal)
        assert "nsbridgectl: " in terminal.shown.rpartition(_LEAVE)[2]


def test_an_unknown_name_is_reported_on_the_normal_screen(tmp_path: Path) -> None:
    with daemon() as path, _top(path, "nobody") as terminal:
        assert terminal.end() == 2  # the fake knows no top
        assert _ENTER not in terminal.shown


# -- once


def _once(path: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    with ctl("top", "-d", "0.1", *arguments, control=path, **options) as running:
        stdout, stderr = running.communicate(timeout=DEADLINE)
    return subprocess.CompletedProcess([], running.returncode, stdout, stderr)


def test_without_a_terminal_it_prints_one_table(busy: str) -> None:
    done = _once(busy, "--sort", "name")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout
    assert len(lines) == 3 + 1 + 42
    assert lines[3].split() == ["NAME", "STATE", "OUT/S", "IN/S", "BYTES/S", "PENDING", "CPU%", "MEM"]
    assert lines[4].split()[:4] == ["orders:legacy", "RUNNING", "0", "250"]
    assert r"x\x1b[2J" in lines[5]


def test_once_at_a_terminal_leaves_the_screen_alone(busy: str) -> None:
    with _top(busy, "--once", "-d", "0.1") as terminal:
        assert terminal.end() == 0
        assert "orders:web" in terminal.shown
        assert "\x1b" not in terminal.shown
        assert max(map(len, terminal.shown.split("\r\n"))) <= 80


def test_without_a_keyboard_it_prints_one_table_too(busy: str) -> None:
    with subprocess.Popen(
        [CTL, "-s", busy, "top", "-d", "0.1"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as running:
        assert "orders:web" in running.communicate(timeout=DEADLINE)[0]


def test_json_is_one_document_with_the_rates(busy: str) -> None:
    found = json.loads(_once(busy, "--json").stdout)
    assert (found["schema"], found["interval_s"]) == (1, 1.0)  # by the daemon's clock
    first = found["agents"][0]
    assert (first["name"], first["in"], first["cpu"], first["memory"]) == ("orders:legacy", 250.0, 0.0, 10 << 20)
    assert set(first) == {
        *(
            "name",
            "state",
            "phase",
            "detail",
            "pid",
            "container",
            "endpoint",
            "out",
            "in",
            "bytes",
            "pending",
            "cpu",
            "memory",
        )
    }


def test_memory_that_is_measured_bit_by_bit_is_asked_for_again() -> None:
    def slowly(api: FakeApi) -> None:
        answers = [None, None, 7 << 20]

        def answer() -> dict[str, Any]:
            own = answers.pop(0) if len(answers) > 1 else answers[0]
            return top_answer(float(3 - len(answers)), (agent("a:b"),), (), {"a:b": process(1.0, own=own)})

        api.results["top"] = answer

    with daemon(slowly) as path, ctl("top", "-d", "1", "--json", control=path) as running:
        found = json.loads(running.communicate(timeout=DEADLINE)[0])
    assert found["agents"][0]["memory"] == 7 << 20


def test_who_may_only_look_may_look_at_top() -> None:
    with Served(group="51001", read_group="51002") as served:
        _busy(served.api)
        assert served.as_user(51000, 51003, [51002], lambda: called(served.path, "top", "reload")) == "yes 77"
