"""Ways of nsbridgectl to a daemon, and its errors about one that is not there, does not answer or refuses."""

from __future__ import annotations

import io
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsbridge.supervisor.cli.nsbridgectl import main
from tests.control_fake import DEADLINE, Served, ctl, one_line


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


# -- no daemon, or one that does not answer


def _fails(*arguments: str, control: str, code: int) -> str:
    with ctl(*arguments, control=control) as process:
        stdout, stderr = process.communicate(timeout=DEADLINE)
    assert (process.returncode, stdout) == (code, "")
    return one_line(stderr)


def test_a_missing_socket_names_the_fix() -> None:
    error = _fails("status", control="/nonexistent/control.sock", code=4)
    assert "/nonexistent/control.sock: there is no such socket; start nsbridged, or name its socket with -s" in error


def test_a_stale_socket_says_that_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert "nobody listens" in _fails("status", control=str(path), code=4)


def test_a_file_that_is_no_socket_differs_from_a_dead_socket() -> None:
    error = _fails("status", control="/etc/passwd", code=4)
    assert "/etc/passwd: that is no socket; name nsbridged's socket with -s" in error


def test_a_daemon_that_does_not_answer_is_given_up_in_time(served: Served) -> None:
    error = _fails("--timeout", "0.3", "status", control=served.path, code=4)  # nobody runs the loop
    assert "did not answer status within 0.3 s" in error


def test_a_following_tail_of_a_stuck_daemon_is_given_up_in_time(served: Served) -> None:
    assert "did not answer" in _fails("--timeout", "0.3", "tail", "-f", control=served.path, code=4)


def test_a_daemon_that_takes_no_connection_is_given_up_in_time(tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as stuck, socket.socket(socket.AF_UNIX) as waiting:
        stuck.bind(path)
        stuck.listen(0)
        waiting.connect(path)
        assert "has not taken the connection within 0.3 s" in _fails("--timeout", "0.3", "status", control=path, code=4)


@pytest.mark.parametrize("words", [b"SSH-2.0-OpenSSH\n", b"[]\n", b"{}\n", b'{"id": 1, "error": 3}\n', b"\xff\n"])
def test_another_program_s_socket_is_recognized(tmp_path: Path, words: bytes) -> None:
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with ctl("status", control=path) as process:
            connection, _ = other.accept()
            with connection:
                connection.sendall(words)
                _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 4
    assert "does not speak nsbridge's protocol" in one_line(stderr)


def test_a_path_longer_than_a_socket_s_isone_line() -> None:
    assert "too long" in _fails("status", control="/" + "x" * 200, code=4)


def _main(served: Served, *arguments: str) -> str:
    """Run the command in this process: other users may not be able to run this interpreter."""
    sys.stderr = io.StringIO()
    return f"{main(['-s', served.path, *arguments])} {sys.stderr.getvalue()}"


def test_a_refused_caller_learns_which_group_it_needs() -> None:
    with Served(group="51001") as served:
        printed = served.as_user(51000, 51003, [], lambda: _main(served, "status"))
        assert printed.startswith("77 nsbridgectl: cannot reach nsbridged")
        assert "be root or in the group" in printed


def test_who_may_only_look_may_not_stop() -> None:
    with Served(group="51001", read_group="51002") as served:
        assert served.as_user(51000, 51003, [51002], lambda: _main(served, "status")) == "0 "
        assert served.as_user(51000, 51003, [51002], lambda: _main(served, "stop", "all")).startswith("77 ")


# -- which socket


def test_s_beats_the_environment(served: Served) -> None:
    assert served.run("-s", served.path, "version", env={"NSBRIDGE_CONTROL": "/nonexistent"}).returncode == 0


def test_the_socket_is_found_through_a_configuration(served: Served, tmp_path: Path) -> None:
    config = tmp_path / "nsbridge.toml"
    config.write_text(f'[daemon]\ncontrol = {{ path = "{served.path}" }}\n')
    done = served.run("-c", str(config), "version", env={"NSBRIDGE_CONTROL": "/nonexistent"})
    assert (done.returncode, done.stderr) == (0, "")


def test_a_wrong_configuration_is_exit_code_2(tmp_path: Path) -> None:
    config = tmp_path / "nsbridge.toml"
    config.write_text("[daemon]\nnonsense = 1\n")
    assert "nonsense" in _fails("-c", str(config), "status", control="/nonexistent", code=2)


def test_a_wrong_command_line_is_exit_code_2_andone_line() -> None:
    assert re.search("no such command: frobnicate", _fails("frobnicate", control="/nonexistent", code=2))
