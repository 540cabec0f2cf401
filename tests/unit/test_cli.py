"""Command `nsbridge`: what each command line means, and the error for a wrong one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nsbridge.config.errors import UsageError
from nsbridge.supervisor.cli import nsbridge as cli

PATHS = ["/proc/1/ns/ipc", "/proc/2/ns/mnt"]
CLI = [sys.executable, "-P", "-m", "nsbridge.supervisor.cli.nsbridge"]


def _bridge(*arguments: str) -> dict[str, object]:
    return cli.parse(["bridge", *PATHS, *arguments]).values


def _nsbridge(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *arguments], capture_output=True, text=True, timeout=30, check=False)


def test_bridge_without_options_is_the_one_process_bridge() -> None:
    assert _bridge() == {
        "ns_ipc": PATHS[0],
        "ns_mnt": PATHS[1],
        "key": 0x4D2,
        "out": "/tmp/to_server",
        "in_": "/tmp/to_client",
        "send_type": 1,
        "receive_type": 2,
    }


def test_bridge_takes_every_option() -> None:
    options = _bridge("--key", "0x10", "--out", "/a", "--in", "/b", "--send-type", "7", "--receive-type", "-3")
    assert {name: options[name] for name in ("key", "out", "in_", "send_type", "receive_type")} == {
        "key": 16,
        "out": "/a",
        "in_": "/b",
        "send_type": 7,
        "receive_type": -3,
    }


def test_a_namespace_path_is_relative_to_where_the_person_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc/self/ns")
    options = cli.parse(["bridge", "ipc", "/proc/1/ns/mnt"])
    assert options.ns_ipc.startswith("/proc/")
    assert options.ns_ipc.endswith("/ns/ipc")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--key", "0"], "IPC_PRIVATE"),
        (["--key", "-5"], "must not be negative"),
        (["--key", "0x100000000"], "32 bits"),
        (["--key", "many"], "0x4d2"),
        (["--out", "to_server"], "absolute"),
        (["--out", ""], "absolute"),
        (["--in", "/tmp/../etc/passwd"], '".."'),
        (["--send-type", "0"], "at least 1"),
        (["--send-type", "9223372036854775808"], "64-bit"),
        (["--receive-type", "two"], "integer"),
        (["--receive-type", "1"], "take its own messages"),
        (["--receive-type", "0"], "take its own messages"),
        (["--receive-type", "-1"], "take its own messages"),
        (["--out", "/tmp/a", "--in", "/tmp/./a"], "take its own messages"),
        (["--colour"], "--colour"),
    ],
)
def test_a_wrong_option_of_bridge_is_refused_in_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        _bridge(*arguments)
    assert said in str(refused.value)
    assert arguments[0] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["bridge"], ["bridge", "/a"], ["bridge", "", "/b"], ["demo", "--runtime", "docker"]]
)
def test_a_wrong_command_line_costs_one_line_and_exit_code_2(arguments: list[str]) -> None:
    done = _nsbridge(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nsbridge: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["bridge"], ["demo"], ["containers"]])
def test_every_command_has_help_and_a_version(command: list[str]) -> None:
    shown, printed = _nsbridge(*command, "--help"), _nsbridge(*command, "--version")
    assert (shown.returncode, shown.stderr, printed.returncode, printed.stderr) == (0, "", 0, "")
    assert shown.stdout.startswith(f"usage: {' '.join(['nsbridge', *command])}")
    assert printed.stdout.startswith("nsbridge 0.")


def test_demo_takes_messages_as_they_are() -> None:
    options = cli.parse(["demo", "--runtime", "unshare", "one two", "", "grüß"])
    assert (options.runtime, options.messages) == ("unshare", ["one two", "", "grüß"])


def test_help_imports_nothing_that_only_a_subcommand_needs() -> None:
    show = "import sys, nsbridge.supervisor.cli.nsbridge as c\nc.main(['--help'])\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", show], capture_output=True, text=True, timeout=30, check=True)
    loaded = {name for name in done.stdout.splitlines()[-1].split() if name.startswith("nsbridge.")}
    assert {name for name in loaded if not name.startswith("nsbridge.supervisor.cli.commands")} == {
        "nsbridge.config",
        "nsbridge.config.errors",
        "nsbridge.config.text",
        "nsbridge.supervisor",
        "nsbridge.supervisor.cli",
        "nsbridge.supervisor.cli.nsbridge",
        "nsbridge.supervisor.cli.program",
    }


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*CLI, "containers"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=30, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_unwritable_output_costs_one_line_and_exit_code_1() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*CLI, "containers"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )
    assert (done.returncode, done.stderr) == (1, "nsbridge: cannot write the output: No space left on device\n")
