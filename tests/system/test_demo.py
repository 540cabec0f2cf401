"""`nsbridge demo`, as a person runs it: real containers, the real daemon, a terminal, Ctrl-C, no root."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from nsbridge.agents import linux
from tests.system.room import LIMIT, wait_dead
from tests.system.terminal import Terminal

DEMO = (sys.executable, "-P", "-m", "nsbridge.supervisor.cli.nsbridge", "demo")
NOBODY = 65534
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
RUNTIMES = ("runc", "unshare")

# Runs the rest of its command line as nobody, in a mount namespace where the paths given before `--` can be reached:
# the directory that hides one is covered there by an empty one that holds nothing but these paths.
AS_NOBODY = """
import os, sys
from pathlib import Path
from nsbridge.agents import linux
end = sys.argv.index("--")
linux.unshare(linux.CLONE_NEWNS)
linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
hidden = {}
for path in map(Path, sys.argv[1:end]):
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & 0o001:
            hidden.setdefault(parent, []).append((path, os.open(path, os.O_PATH)))
            break
for parent, below in hidden.items():
    linux.mount("tmpfs", str(parent), "tmpfs", 0, "mode=0755")
    for path, fd in below:
        path.mkdir(parents=True, exist_ok=True)
        linux.mount(f"/proc/self/fd/{fd}", str(path), None, linux.MS_BIND | linux.MS_REC)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
os.execv(sys.argv[end + 1], sys.argv[end + 1 :])
"""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Yield the directory for temporary files; at the end the demo must have left nothing there and nothing elsewhere.

    Other demos may run on the machine: only what has this directory's name in it, or is our descendant, counts.
    """
    linux.prctl(PR_SET_CHILD_SUBREAPER, 1)  # what outlives its parent becomes our child, and is found
    before = _children()
    directory = Path(tempfile.mkdtemp(prefix="nsb-test-"))
    directory.chmod(0o1777)
    try:
        yield directory
        assert list(directory.iterdir()) == [], "the demo left temporary files"
        _assert_that_they_die(_children() - before)
        assert str(directory) not in Path("/proc/self/mountinfo").read_text(), "the demo left a mount"
        assert [state for state in Path("/run/runc").glob("*/state.json") if str(directory) in _text(state)] == []
    finally:
        linux.prctl(PR_SET_CHILD_SUBREAPER, 0)
        shutil.rmtree(directory)


def _text(path: Path) -> str:
    """Return the text of a file; empty if it has just been removed, with somebody else's container."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def _assert_that_they_die(orphans: set[str]) -> None:
    """Assert that they die: a killed process may need a moment; a live one is found here."""
    for orphan in orphans:
        command = Path(f"/proc/{orphan}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        try:
            wait_dead(int(orphan), 5.0)
        except AssertionError:
            os.kill(int(orphan), signal.SIGKILL)
            raise AssertionError(f"the demo left process {orphan} running: {command}") from None
        finally:
            os.waitpid(int(orphan), 0)


def _demo(scratch: Path, *arguments: str, prefix: Sequence[str] = (), **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, *DEMO, *arguments],
        env={**os.environ, "TMPDIR": str(scratch), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )


def _received(output: str) -> list[str]:
    return [line.removeprefix("Recv ") for line in output.splitlines() if line.startswith("Recv ")]


# -- without a terminal


@pytest.mark.parametrize("runtime", [*RUNTIMES, "auto"])
def test_without_messages_it_sends_its_own_and_survives_a_kill(runtime: str, scratch: Path) -> None:
    done = _demo(scratch, "--runtime", runtime)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    first, *rest = _received(done.stdout)
    assert len(rest) == 3
    assert rest[-1] == first  # what was sent after the kill
    assert re.search(r"killing agent echo:server \(kill -9 \d+\)", done.stdout)
    assert re.search(r"echo:client noticed nothing: still pid \d+, restarts 0", done.stdout)
    assert re.search(r"echo:server is back: pid (\d+) is now pid (?!\1,)\d+, restarts 1", done.stdout)
    assert len(re.findall(r"^echo:(client|server) +RUNNING ", done.stdout, re.MULTILINE)) == 4
    assert "4 of 4 messages came back" in done.stdout
    for name in set(re.findall(r"runc:(nsbridge-demo-\S+)", done.stdout)):
        assert list(Path("/sys/fs/cgroup").glob(f"**/{name}")) == [], "the demo left control groups"
    assert "\x1b" not in done.stdout, "colours are for terminals only"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_flow_counts_the_messages_that_were_sent_and_no_others(runtime: str, scratch: Path) -> None:
    done = _demo(scratch, "--runtime", runtime, "one", "two")
    assert re.findall(r"out (\d+)  in (\d+)$", done.stdout, re.MULTILINE) == [("2", "2")] * 2 + [("3", "3")] * 2


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_messages_come_back_as_they_are(runtime: str, scratch: Path) -> None:
    messages = ["grüß dich, 世界 🐧", "", "x" * 8000, " a  b\t", "-", "Recv Recv"]
    done = _demo(scratch, "--runtime", runtime, "--", *messages)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert _received(done.stdout) == [*messages, messages[0]]


def test_bytes_that_are_no_text_come_back_too(scratch: Path) -> None:
    message = b"\xff\xfe not UTF-8"
    command = [*map(os.fsencode, DEMO), b"--runtime", b"unshare", message]
    env = {**os.environ, "TMPDIR": str(scratch), "LC_ALL": "C"}
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"Recv " + message + b"\n") == 2


def test_an_overlong_message_is_refused_and_the_rest_is_sent(scratch: Path) -> None:
    done = _demo(scratch, "--runtime", "unshare", "first", "x" * 8001, "last")
    assert done.returncode == 1
    assert "echo_client: the message has 8001 bytes, at most 8000 can be sent\n" in done.stdout
    assert _received(done.stdout) == ["first", "last", "first"]
    assert "only 3 of 4 messages" in done.stdout


def test_a_message_of_two_lines_is_refused_at_the_start(scratch: Path) -> None:
    done = _demo(scratch, "one\ntwo")
    assert (done.returncode, done.stdout) == (2, "")
    assert "newline" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_leaves_nothing_running(unbuffered: str, scratch: Path) -> None:
    read, write = os.pipe()
    with subprocess.Popen(
        [*DEMO, "--runtime", "unshare"],
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": unbuffered},
        stdout=write,
        stderr=subprocess.PIPE,
    ) as demo:
        os.close(write)
        os.read(read, 1)
        os.close(read)
        assert demo.communicate(timeout=LIMIT)[1] == b""
        assert demo.returncode == 1


def test_a_long_tmpdir_moves_the_control_socket_elsewhere(scratch: Path) -> None:
    long = scratch / ("d" * 100)
    long.mkdir()
    done = _demo(scratch, "--runtime", "unshare", "hello", TMPDIR=str(long))
    assert (done.returncode, done.stderr) == (0, "")
    long.rmdir()


# -- where something is missing


def test_auto_uses_plain_namespaces_if_runc_fails_and_says_why(scratch: Path, tmp_path: Path) -> None:
    done = _demo(scratch, "hello", PATH=_broken_runc(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"runc cannot run a container here \(.+\): plain namespaces instead", done.stdout)
    assert _received(done.stdout) == ["hello", "hello"]


def test_runc_that_was_asked_for_and_fails_costs_one_line(scratch: Path, tmp_path: Path) -> None:
    done = _demo(scratch, "--runtime", "runc", "hello", PATH=_broken_runc(tmp_path))
    assert done.returncode == 1
    assert re.fullmatch(
        r"nsbridge: runc cannot run a container here: .*exit code 9; try --runtime unshare\n", done.stderr
    )


def test_where_user_namespaces_are_forbidden_the_sysctl_is_named(scratch: Path) -> None:
    forbid = 'echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin "$@"'
    done = _demo(scratch, prefix=("unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh"))
    assert done.returncode == 77
    assert done.stderr.count("\n") == 1
    assert "user.max_user_namespaces = 0 forbids it" in done.stderr


def _broken_runc(directory: Path) -> str:
    runc = directory / "runc"
    runc.write_text("#!/bin/sh\ncase \" $* \" in *' delete '*) exit 0;; esac\nexit 9\n")
    runc.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


# -- without root


def _as_nobody() -> list[str]:
    package = Path(linux.__file__).resolve().parents[1]
    return [sys.executable, "-P", "-c", AS_NOBODY, sys.prefix, sys.base_prefix, str(package), "--"]


def test_nobody_can_run_it(scratch: Path) -> None:
    done = _demo(scratch, "grüß dich", "", prefix=_as_nobody(), HOME="/")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "not root, so all this happens in a user namespace" in done.stdout
    assert _received(done.stdout) == ["grüß dich", "", "grüß dich"]
    assert "restarts 1" in done.stdout


def test_runc_without_root_is_refused_in_one_line(scratch: Path) -> None:
    done = _demo(scratch, "--runtime", "runc", prefix=_as_nobody(), HOME="/")
    assert done.returncode == 77
    assert done.stderr == "nsbridge: --runtime runc needs root: use sudo, or --runtime unshare, which does without\n"


# -- at a terminal


class OpenTerminal(Protocol):
    def __call__(self, *arguments: str) -> Terminal: ...


@pytest.fixture
def at_terminal(scratch: Path) -> Iterator[OpenTerminal]:
    with ExitStack() as opened:

        def open_terminal(*arguments: str) -> Terminal:
            terminal = Terminal([*DEMO, *arguments], TMPDIR=str(scratch))
            opened.callback(terminal.close)
            return terminal

        yield open_terminal


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_person_types_lines_and_kills_both_agents(runtime: str, at_terminal: OpenTerminal) -> None:
    terminal = at_terminal("--runtime", runtime)
    terminal.see("> ")
    for line in ("first line", "zweite Zeile: ü"):
        terminal.type(f"{line}\n".encode())
        terminal.see(f"Recv {line}\x1b[0m\r\n")
    for victim in ("echo:server", "echo:client"):
        terminal.type(b"kill\n")
        terminal.see(f"killing agent {victim}")
        terminal.type(f"after {victim}\n".encode())
        terminal.see(f"Recv after {victim}\x1b[0m\r\n")
        terminal.see(f"{victim} is back")
    terminal.type(b"\n")
    assert terminal.end() == 0, terminal.shown
    assert "4 of 4 messages came back" in terminal.shown
    assert "\x1b[32mRUNNING\x1b[0m" in terminal.shown


def test_ctrl_d_ends_the_conversation(at_terminal: OpenTerminal) -> None:
    terminal = at_terminal("--runtime", "unshare")
    terminal.see("> ")
    terminal.type(b"\x04")
    assert terminal.end() == 0, terminal.shown


@pytest.mark.parametrize("moment", ["two containers", "# nsbridged, pid", "> "])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_ctrl_c_leaves_nothing_behind(runtime: str, moment: str, at_terminal: OpenTerminal) -> None:
    terminal = at_terminal("--runtime", runtime)
    terminal.see(moment)
    terminal.type(b"\x03\x03")
    assert terminal.end() == 0, terminal.shown
    assert "Traceback" not in terminal.shown


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_ends_it_leaves_nothing_behind(
    signum: signal.Signals, code: int, at_terminal: OpenTerminal
) -> None:
    terminal = at_terminal("--runtime", "runc")
    terminal.see("> ")
    terminal.process.send_signal(signum)
    assert terminal.end() == code, terminal.shown


def test_the_daemon_s_death_is_reported_and_all_is_removed(at_terminal: OpenTerminal) -> None:
    terminal = at_terminal("--runtime", "unshare")
    terminal.see("> ")
    found = re.search(r"nsbridged, pid (\d+)", terminal.shown)
    assert found is not None
    os.kill(int(found[1]), signal.SIGKILL)
    terminal.type(b"kill\n")
    assert terminal.end() == 1
    assert "nsbridged has ended with exit code -9" in terminal.shown


# -- two hosts


def test_two_hosts_are_joined_by_a_real_nats_server(scratch: Path) -> None:
    """Their messages survive the kill of an agent and of the server; the demo leaves nothing behind."""
    done = _demo(scratch, "--two-hosts", "--runtime", "unshare", "one", "zwei Grüße")
    assert (done.returncode, done.stderr) == (0, "")
    assert _received(done.stdout) == ["one", "zwei Grüße", "one"]
    assert "3 of 3 messages came back" in done.stdout
    hosts = re.findall(r"net namespace (\d+)", done.stdout)
    assert len({*hosts, str(Path("/proc/self/ns/net").stat().st_ino)}) == 3
