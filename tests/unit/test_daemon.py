"""`nsbridged` as a command: what a wrong configuration or a wrong caller gets to see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nsbridge.config.errors import EXIT_NOT_PERMITTED, EXIT_OK, EXIT_USAGE
from nsbridge.supervisor.cli.nsbridged import main

MALFORMED = sorted((Path(__file__).parent / "malformed").glob("*.toml"))
EXAMPLE = Path(__file__).parents[2] / "config" / "example.toml"


@pytest.mark.parametrize("file", MALFORMED, ids=lambda file: file.stem)
def test_a_malformed_configuration_exits_2_with_a_line_per_error(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each names the file; nothing is started."""
    assert main(["--check", "-c", str(file)]) == EXIT_USAGE
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines
    for line in lines:
        assert line.startswith(f"nsbridged: {file}: "), line
    assert "Traceback" not in said.err


def test_there_are_at_least_40_malformed_configurations() -> None:
    """Holds the number, so that the test above cannot shrink unseen."""
    assert len(MALFORMED) >= 40


def test_a_right_configuration_is_reported_as_right(capsys: pytest.CaptureFixture[str]) -> None:
    """--check of the example."""
    assert main(["--check", "-c", str(EXAMPLE)]) == EXIT_OK
    assert capsys.readouterr().out.startswith(f"{EXAMPLE}: right; ")


def test_check_reports_what_the_host_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A group that is not there would keep the daemon from starting, and so would a log's directory."""
    file = tmp_path / "nsbridge.toml"
    file.write_text('[daemon]\ncontrol = { group = "no-such-group" }\n', encoding="utf-8")
    assert main(["--check", "-c", str(file)]) == EXIT_USAGE
    assert "daemon.control.group: this host has no group 'no-such-group'" in capsys.readouterr().err
    file.write_text('[daemon]\nlog = { file = "/no/such/directory/log" }\n', encoding="utf-8")
    assert main(["--check", "-c", str(file)]) == EXIT_OK
    assert f"{file}: this host: daemon.log.file: make /no/such/directory\n" in capsys.readouterr().out


def test_check_looks_at_keys_and_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, seed = tmp_path / "nsbridge.toml", tmp_path / "seed"
    seed.write_text("SUA\n", encoding="utf-8")
    seed.chmod(0o604)
    file.write_text(
        '[route.r.agent.a]\ncontainer = "docker:web"\nspool = { out = "/out" }\n'
        '[route.r.agent.b]\ncontainer = "host"\n'
        f'nats = {{ in = {{ subject = "a" }}, credentials = "{seed}", tls = {{ ca = "{tmp_path}/missing" }} }}\n',
        encoding="utf-8",
    )
    assert main(["--check", "-c", str(file)]) == EXIT_OK
    out = capsys.readouterr().out
    why = f"every user of this host can read it (mode 0604), and it is secret; chmod o= {seed}"
    assert f"{file}: this host: r:b: credentials {seed}: {why}\n" in out
    assert f"{file}: this host: r:b: tls.ca {tmp_path}/missing: No such file or directory\n" in out
    seed.chmod(0o640)
    assert main(["--check", "-c", str(file)]) == EXIT_OK
    assert "credentials" not in capsys.readouterr().out


def test_check_warns_of_exact_routes_into_one_queue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is right, and probably not what is meant."""
    route = (
        '[route.{0}.agent.a]\ncontainer = "docker:web"\nspool = {{ out = "/{0}" }}\n'
        '[route.{0}.agent.b]\ncontainer = "docker:legacy"\nqueue = {{ in = {{ key = 0x51 }} }}\n'
    )
    file = tmp_path / "nsbridge.toml"
    file.write_text(route.format("r") + route.format("s"), encoding="utf-8")
    assert main(["--check", "-c", str(file)]) == EXIT_OK
    warning = f"{file}: s:b: r:b sends into queue 0x51 of docker:legacy too. Without the kernel's counter"
    assert warning in capsys.readouterr().out


def test_the_installed_command_exits_2_without_a_traceback() -> None:
    """The console script, as a person calls it."""
    command = Path(sys.executable).with_name("nsbridged")
    done = subprocess.run([command, "-c", MALFORMED[0]], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == EXIT_USAGE
    assert done.stdout == ""
    assert done.stderr.startswith(f"nsbridged: {MALFORMED[0]}: ")
    assert "Traceback" not in done.stderr


def test_a_wrong_option_exits_2_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--no-such-option"]) == EXIT_USAGE
    assert capsys.readouterr().err == "nsbridged: no such option: --no-such-option; --help lists them\n"


def test_a_user_other_than_root_is_refused() -> None:
    """Exit code 77, in one line; the configuration is checked first."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(writer, 2)
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  (pytest has its own)
            os.seteuid(65534)
            code = main(["-c", "/dev/null"])
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as said:
        lines = said.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == EXIT_NOT_PERMITTED
    assert lines == [
        "nsbridged: must be root to enter containers' namespaces: run it with sudo, or as a system service"
    ]
