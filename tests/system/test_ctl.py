"""nsbridgectl as a person and a program meet it: the installed command against a real socket."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.control_fake import DEADLINE, HEALTHY, NO_ANSWER, Served, agent, ctl, flow, one_line, status_document

RECORD = {"time": "2026-11-23T19:00:00.123Z", "level": "INFO", "name": "orders:web", "message": "up\x1b[2J"}
SHOWN = "2026-11-23T19:00:00.123Z INFO orders:web up\\x1b[2J\n"


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


# -- commands


def test_status_shows_a_line_for_each_agent(served: Served) -> None:
    done = served.run("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["orders:web", "RUNNING"],
        ["orders:legacy", "RUNNING"],
    ]


def test_status_json_is_one_document_as_the_daemon_gave_it(served: Served) -> None:
    assert json.loads(served.run("status", "--json").stdout) == HEALTHY


def test_status_passes_the_names_on(served: Served) -> None:
    assert served.run("status", "orders").returncode == 0
    assert served.api.calls == [("status", {"names": ["orders"]})]


def test_an_unknown_name_is_exit_code_5(served: Served) -> None:
    done = served.run("status", "nobody")
    assert done.returncode == 5
    assert "nobody" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("state", "wanted", "code"),
    [
        ("RUNNING", True, 0),
        ("WAITING", True, 3),
        ("BACKOFF", True, 3),
        ("FATAL", True, 3),
        ("STARTING", True, 3),
        ("STOPPED", False, 0),
        ("STOPPING", False, 0),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_status_fails_exactly_when_what_should_run_does_not(
    served: Served, state: str, wanted: bool, code: int, options: list[str]
) -> None:
    served.api.status = status_document(agent("orders:web", state=state, wanted=wanted))
    assert served.run("status", *options).returncode == code


@pytest.mark.parametrize(("is_long", "code"), [(True, 3), (False, 0)])
def test_status_fails_for_what_is_blocked_for_long(served: Served, is_long: bool, code: int) -> None:
    """A monitor sees it as it sees an agent that does not run; a full queue that drains soon is no failure."""
    served.api.status = status_document(agent("orders:web", detail="blocked: queue full", blocked_long=is_long))
    assert served.run("status").returncode == code


def test_hostile_names_are_escaped_on_a_person_s_terminal(served: Served) -> None:
    served.api.status = status_document(
        agent("a:b", container="docker:\x1b[2J\n\udc80", state="FATAL", detail="\r\x07")
    )
    output = served.run("status").stdout
    assert r"docker:\x1b[2J\n\udc80" in output
    assert r"\r\x07" in output
    assert output.count("\n") == 1


def test_start_orders_the_named_agents_and_shows_the_outcome(served: Served) -> None:
    served.api.changed = [{"name": "orders:web", "state": "STARTING", "detail": ""}]
    done = served.run("start", "orders", "orders:web")
    assert (done.returncode, done.stdout) == (0, "orders:web  STARTING\n")
    assert served.api.calls == [("start", {"names": ["orders", "orders:web"], "wait": False})]


def test_stop_with_wait_is_done_when_all_have_stopped(served: Served) -> None:
    served.api.changed = [{"name": "orders:web", "state": "STOPPED", "detail": ""}]
    assert served.run("stop", "all", "--wait").returncode == 0
    assert served.api.calls == [("stop", {"names": ["all"], "wait": True})]


def test_start_with_wait_fails_if_an_agent_does_not_run(served: Served) -> None:
    served.api.changed = [{"name": "orders:web", "state": "FATAL", "detail": "no such namespace"}]
    done = served.run("restart", "all", "--wait")
    assert done.returncode == 1
    assert "no such namespace" in done.stdout
    assert "orders:web is FATAL" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("command", "aim", "state"),
    [("start", "RUNNING", "STARTING"), ("restart", "RUNNING", "STOPPING"), ("stop", "STOPPED", "RUNNING")],
)
def test_wait_that_takes_too_long_says_what_it_waits_for(served: Served, command: str, aim: str, state: str) -> None:
    served.api.status = status_document(agent("orders:web", state=state, detail="why\x07"), agent("a:b", state=aim))
    served.api.results[command] = NO_ANSWER
    done = served.run("--timeout", "0.3", command, "--wait", "orders")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{command}: not done within 0.3 s: orders:web is {state} (why\\x07); it continues" in one_line(done.stderr)
    assert "a:b" not in done.stderr


def test_overdue_shutdown_says_how_much_is_left(served: Served) -> None:
    """The process that answers here is the test's own, which does not end."""
    agents = agent("a:a", state="STOPPING", detail="why\x07"), agent("a:b", state="STOPPED")
    served.api.status = status_document(*agents, flows=(flow("a:a", "a:b", pending=12),))
    done = served.run("--timeout", "0.3", "shutdown", "--wait")
    assert (done.returncode, done.stdout) == (1, "")
    said = (
        "shutdown: not done within 0.3 s: a:a is STOPPING (why\\x07), 12 messages are not handed over yet; it continues"
    )
    assert said in one_line(done.stderr)


def test_overdue_shutdown_of_a_daemon_that_hangs(served: Served) -> None:
    served.api.results["shutdown"] = served.api.results["status"] = NO_ANSWER
    done = served.run("--timeout", "0.3", "shutdown", "--wait")
    assert (done.returncode, done.stdout) == (4, "")
    assert "did not answer status" in one_line(done.stderr)


def test_an_unanswered_order_means_an_unreachable_daemon(served: Served) -> None:
    served.api.results["start"] = NO_ANSWER
    done = served.run("--timeout", "0.3", "start", "orders")
    assert done.returncode == 4
    assert "did not answer start within 0.3 s" in one_line(done.stderr)


def test_inspect_shows_everything_escaped(served: Served) -> None:
    done = served.run("inspect", "orders:web")
    assert r"3 /x\x1b[2J" in done.stdout
    assert "\x1b" not in done.stdout
    assert json.loads(served.run("inspect", "orders:web", "--json").stdout)[0]["pid"] == 4711


def test_shutdown_and_version_are_answered(served: Served) -> None:
    assert served.run("shutdown").stdout.startswith("nsbridged is shutting down: it hands over what is in flight first")
    assert served.run("version").stdout == "nsbridged 0.2.0\n"
    assert json.loads(served.run("version", "--json").stdout)["version"] == "0.2.0"


def test_help_and_version_need_no_daemon() -> None:
    for arguments, expected in (
        (["--help"], "usage: nsbridgectl"),
        (["status", "-h"], "usage:"),
        (["--version"], "nsbridgectl "),
    ):
        with ctl(*arguments, control="/nonexistent") as process:
            stdout, stderr = process.communicate(timeout=DEADLINE)
        assert (process.returncode, stderr) == (0, "")
        assert stdout.startswith(expected)


# -- tail


def test_tail_prints_the_log_as_the_daemon_writes_it(served: Served) -> None:
    served.api.records = [RECORD, RECORD | {"name": ""}]
    assert served.run("tail", "-n", "5").stdout == SHOWN + SHOWN.replace("orders:web", "nsbridged")
    assert served.api.calls == [("tail", {"name": "", "count": 5, "follow": False})]


def test_tail_json_is_an_object_a_line(served: Served) -> None:
    served.api.records = [RECORD, RECORD]
    assert [json.loads(line) for line in served.run("tail", "--json").stdout.splitlines()] == [RECORD, RECORD]


def test_tail_follow_prints_at_once_and_ends_quietly_on_ctrl_c(served: Served) -> None:
    with ctl("tail", "-f", control=served.path) as process:
        served.pump(lambda: any(method == "tail" for method, _ in served.api.calls))
        served.api.answers[-1].item(RECORD)
        assert process.stdout is not None
        assert process.stdout.readline() == SHOWN
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=DEADLINE)
    assert (process.returncode, stdout, stderr) == (0, "", "")
    served.pump(lambda: not served.api.answers[-1].is_open)


def test_tail_follow_waits_longer_than_the_time_limit(served: Served) -> None:
    with ctl("--timeout", "1", "tail", "-f", control=served.path) as process:
        served.pump(lambda: any(method == "tail" for method, _ in served.api.calls))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.3)
        served.api.answers[-1].result({})
        assert process.communicate(timeout=DEADLINE) == ("", "")
    assert process.returncode == 0


def test_tail_follow_says_that_the_daemon_has_gone(served: Served) -> None:
    with ctl("tail", "-f", control=served.path) as process:
        served.pump(lambda: any(method == "tail" for method, _ in served.api.calls))
        served.server.close()
        _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 4
    assert "nsbridged has ended" in one_line(stderr)


@pytest.mark.parametrize("arguments", [["tail", "-n", "5000"], ["status"]])
def test_a_reader_that_has_seen_enough_is_no_error(served: Served, arguments: list[str]) -> None:
    served.api.records = [RECORD] * 5000
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = served.run(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_behind_stdout_isone_line(served: Served) -> None:
    with open("/dev/full", "w") as full:
        done = served.run("status", stdout=full)
    assert done.returncode == 1
    assert "No space left on device" in one_line(done.stderr)


# -- colour


def _on_a_terminal(served: Served, **env: str) -> str:
    ours, theirs = pty.openpty()
    try:
        served.run("status", stdout=theirs, env=env)
        return os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_terminal_gets_colour(served: Served) -> None:
    assert "\x1b[32mRUNNING\x1b[0m" in _on_a_terminal(served)


def test_no_color_is_respected(served: Served) -> None:
    assert "\x1b" not in _on_a_terminal(served, NO_COLOR="1")


def test_a_pipe_gets_no_colour(served: Served) -> None:
    assert "\x1b" not in served.run("status").stdout


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
def test_a_poor_locale_is_no_reason_to_fail(served: Served, locale: str) -> None:
    served.api.status = status_document(agent("a:b", container="docker:web→ü"))
    done = served.run("status", env={"LC_ALL": locale, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert r"docker:web\u2192\xfc" in done.stdout
