"""`--daemon` and the pid file: real daemons, looked at from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.host.pidfile import PidFile

DEADLINE = 20.0

PREAMBLE = """
import json, os, resource, signal, sys, time
from nsbridge.config.errors import ConfigError, NsbridgeError, NotPermittedError
from nsbridge.supervisor.host.detach import run_detached
from nsbridge.supervisor.host.pidfile import PidFile

STATE = sys.argv[1]
PIDFILE = PidFile(STATE + "/nsbridged.pid")

def report(facts):
    with open(STATE + "/facts.new", "w") as file:
        json.dump(facts, file)
    os.rename(STATE + "/facts.new", STATE + "/facts")
"""
SERVE = """
def start(ready):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    ready()
    signal.sigwait([signal.SIGTERM])
    return 0
sys.exit(run_detached(start, PIDFILE))
"""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    pidfile = tmp_path / "nsbridged.pid"
    if pidfile.exists() and (text := pidfile.read_text()):
        os.kill(int(text), signal.SIGKILL)


def _run(state: Path, program: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PREAMBLE + program, str(state)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE, **options)


def _until(condition: Any) -> Any:
    end = time.monotonic() + DEADLINE
    while not (got := condition()):
        assert time.monotonic() < end, "it has not happened in time"
        time.sleep(0.01)  # polls
    return got


def _pid(state: Path) -> int:
    return int((state / "nsbridged.pid").read_text())


def _stat(pid: int) -> list[str]:
    """Return the fields of proc_pid_stat(5) from the third on: state, ppid, pgrp, session, tty_nr."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def test_the_command_ends_well_when_the_daemon_is_ready(state: Path) -> None:
    done = _run(state, SERVE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Path(f"/proc/{_pid(state)}").exists()


def test_the_command_does_not_end_before_the_daemon_is_ready(state: Path) -> None:
    program = """
def start(ready):
    while not os.path.exists(STATE + "/go"):
        time.sleep(0.01)  # polls
    ready()
    signal.sigwait([signal.SIGTERM])
    return 0
sys.exit(run_detached(start, PIDFILE))
"""
    with subprocess.Popen([sys.executable, "-c", PREAMBLE + program, str(state)]) as command:
        _until((state / "nsbridged.pid").exists)
        with pytest.raises(subprocess.TimeoutExpired):
            command.wait(0.3)
        (state / "go").touch()
        assert command.wait(DEADLINE) == 0


def test_the_daemon_is_on_its_own(state: Path) -> None:
    """No terminal, a session of somebody who has ended, so that it can never get one; a parent that only reaps."""
    with subprocess.Popen([sys.executable, "-c", PREAMBLE + SERVE, str(state)], start_new_session=True) as command:
        assert command.wait(DEADLINE) == 0
    pid = _pid(state)
    _, ppid, group, session, terminal = _stat(pid)[:5]
    assert terminal == "0"
    assert int(session) == int(group)
    assert int(session) not in (pid, command.pid, os.getsid(0))
    _until(lambda: not _lives(int(session)))
    assert int(ppid) not in (command.pid, os.getpid(), int(session))
    assert int(ppid) == 1 or _is_subreaper(int(ppid))


def _lives(pid: int) -> bool:
    """True if it is there and not merely waiting to be reaped."""
    try:
        return _stat(pid)[0] not in "ZX"
    except OSError:
        return False


def _is_subreaper(pid: int) -> bool:
    """True if orphans of ours come to `pid`."""
    program = """
import os
parent = os.getpid()
if os.fork() == 0:
    while os.getppid() == parent:
        pass
    print(os.getppid(), flush=True)
"""
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout) == pid


def test_the_daemon_has_root_directory_umask_and_no_core_dumps(state: Path) -> None:
    assert _run(state, SERVE, cwd=state, umask=0).returncode == 0
    pid = _pid(state)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert status["Umask"].strip() == "0027"
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    assert next(line for line in limits if "core" in line).split()[4:6] == ["0", "0"]


def test_the_daemon_holds_no_descriptor_of_the_command(state: Path) -> None:
    leak = (state / "leak").open("w")
    os.set_inheritable(leak.fileno(), True)
    try:
        assert _run(state, SERVE, pass_fds=[leak.fileno()]).returncode == 0
    finally:
        leak.close()
    held = {int(fd): os.readlink(f"/proc/{_pid(state)}/fd/{fd}") for fd in os.listdir(f"/proc/{_pid(state)}/fd")}
    assert [held.pop(fd) for fd in (0, 1, 2)] == ["/dev/null"] * 3
    assert set(held.values()) <= {"/dev/null", str(state / "nsbridged.pid"), str(state)}


@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1 2"])
def test_a_command_with_closed_streams_detaches_all_the_same(state: Path, closed: str) -> None:
    shut = " ".join(f"{fd}>&-" for fd in closed.split())
    command = ["sh", "-c", f'exec "$@" {shut}', "sh", sys.executable, "-c", PREAMBLE + SERVE, str(state)]
    assert subprocess.run(command, check=False, timeout=DEADLINE).returncode == 0
    assert {os.readlink(f"/proc/{_pid(state)}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}


def test_signals_are_left_to_the_daemon_s_own_loop(state: Path) -> None:
    program = """
def start(ready):
    names = ("SIGTERM", "SIGTSTP", "SIGTTIN", "SIGTTOU")
    report({name: int(signal.getsignal(getattr(signal, name))) for name in names})
    ready()
    return 0
sys.exit(run_detached(start, PIDFILE))
"""
    assert _run(state, program).returncode == 0
    assert set(json.loads((state / "facts").read_text()).values()) == {signal.SIG_DFL}


# -- what goes wrong


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        ("raise NsbridgeError('the socket is taken')", 1, "nsbridged: the socket is taken\n"),
        ("raise NotPermittedError('be root')", 77, "nsbridged: be root\n"),
        ("raise ConfigError(['a: wrong', 'b: wrong'])", 2, "nsbridged: a: wrong\nnsbridged: b: wrong\n"),
        ("raise TypeError('a bug')", 1, "nsbridged: cannot run as a daemon: TypeError: a bug\n"),
        ("raise MemoryError", 1, "nsbridged: cannot run as a daemon: MemoryError: \n"),
        ("sys.exit(9)", 9, "nsbridged: it ended with exit code 9 before it was ready\n"),
        ("return 5", 5, "nsbridged: it ended with exit code 5 before it was ready\n"),
        ("return 0", 1, "nsbridged: it ended with exit code 0 before it was ready\n"),
        ("os._exit(3)", 1, "nsbridged: the daemon was killed before it was ready"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1, "nsbridged: the daemon was killed before it was ready"),
        ("os.chdir('/nonexistent')", 1, "nsbridged: cannot run as a daemon: FileNotFoundError"),
    ],
)
def test_no_error_is_lost_in_the_detaching(state: Path, failure: str, code: int, said: str) -> None:
    done = _run(state, f"def start(ready):\n    {failure}\nsys.exit(run_detached(start, PIDFILE))")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr
    (state / "nsbridged.pid").unlink(missing_ok=True)  # of a killed one


def test_a_second_daemon_is_refused_on_the_command_s_own_stderr(state: Path) -> None:
    assert _run(state, SERVE).returncode == 0
    first = _pid(state)
    second = _run(state, SERVE)
    assert second.returncode == 1
    assert f"another nsbridged (pid {first}) runs with this state_dir" in second.stderr
    assert second.stderr.count("\n") == 1
    assert _pid(state) == first


def test_a_pid_file_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    done = _run(tmp_path / "missing", SERVE)
    assert done.returncode == 1
    assert "cannot write the pid file" in done.stderr
    assert "(daemon.state_dir): No such file or directory" in done.stderr


def test_the_daemon_s_end_takes_its_pid_file_away(state: Path) -> None:
    assert _run(state, SERVE).returncode == 0
    os.kill(_pid(state), signal.SIGTERM)
    _until(lambda: not (state / "nsbridged.pid").exists())


def test_output_waiting_in_the_command_is_written_once(state: Path) -> None:
    done = _run(state, "sys.stdout.write('once ')\n" + SERVE)
    assert done.stdout == "once "


def test_ctrl_c_while_waiting_lets_the_daemon_start(state: Path) -> None:
    program = """
def start(ready):
    report("started")
    while not os.path.exists(STATE + "/go"):
        time.sleep(0.01)  # polls
    ready()
    report("ready")
    return 0
sys.exit(run_detached(start, PIDFILE))
"""
    command = [sys.executable, "-c", PREAMBLE + program, str(state)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        _until((state / "facts").exists)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert stderr.count("\n") == 1
    (state / "go").touch()
    _until(lambda: json.loads((state / "facts").read_text()) == "ready")
    _until(lambda: not (state / "nsbridged.pid").exists())


# -- the pid file by itself


def test_the_pid_file_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "nsbridged.pid"
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


HOLD = """
import sys, time
from nsbridge.supervisor.host.pidfile import PidFile
PidFile(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(1000)  # it lives until it is killed
"""


def _holding(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_names_the_live_holder_not_the_file_s_text(tmp_path: Path) -> None:
    path = tmp_path / "nsbridged.pid"
    with _holding(path) as holder:
        path.write_text("1\n")
        with pytest.raises(NsbridgeError, match=rf"another nsbridged \(pid {holder.pid}\) runs with this state_dir"):
            PidFile(str(path)).acquire()
        holder.kill()


def test_a_killed_daemon_s_lock_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "nsbridged.pid"
    with _holding(path) as holder:
        holder.kill()
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_forked_child_neither_holds_nor_releases_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "nsbridged.pid"
    held = PidFile(str(path))
    held.acquire()
    child = os.fork()
    if child == 0:
        held.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert path.exists()
    other = subprocess.run([sys.executable, "-c", HOLD, str(path)], capture_output=True, text=True, check=False)
    held.release()
    assert f"another nsbridged (pid {os.getpid()})" in other.stderr


def test_of_many_that_start_at_once_exactly_one_wins(tmp_path: Path) -> None:
    """Also while the one before it is ending, and takes its file away under their hands."""
    path = tmp_path / "nsbridged.pid"
    race = """
import os, sys, time
from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.host.pidfile import PidFile
end = time.monotonic() + 1
while time.monotonic() < end:
    try:
        with PidFile(sys.argv[1]):
            inside = os.open(sys.argv[2], os.O_CREAT | os.O_EXCL)  # fails if two are in here
            os.close(inside)
            os.unlink(sys.argv[2])
    except NsbridgeError:
        pass
"""
    command = [sys.executable, "-c", race, str(path), str(tmp_path / "inside")]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    complaints = [racer.communicate(timeout=DEADLINE)[1] for racer in racers]
    assert complaints == [""] * 4


def test_a_link_in_the_pid_file_s_place_is_not_followed(tmp_path: Path) -> None:
    precious, path = tmp_path / "precious", tmp_path / "nsbridged.pid"
    precious.write_text("precious")
    path.symlink_to(precious)
    with pytest.raises(NsbridgeError, match="cannot write the pid file"):
        PidFile(str(path)).acquire()
    assert precious.read_text() == "precious"
