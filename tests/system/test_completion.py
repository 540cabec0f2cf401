"""Completion as a person meets it: a real bash, zsh and fish at a terminal, TAB, and a daemon that knows the names."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nsbridge.supervisor.cli.commands import completion, share
from tests.control_fake import DEADLINE, LETTER, FakeApi, Served, agent, ctl, daemon, status_document
from tests.system.terminal import Terminal

BIN = Path(sys.executable).parent
# What starts each shell without anybody's settings.
SHELLS = {
    "bash": ["bash", "--noprofile", "--norc", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config"],
}
# What a person types there once, to have the script that nsbridgectl prints.
PRINTED = {
    "bash": 'PS1="READY> "; eval "$(nsbridgectl completion bash)"',
    "zsh": 'PROMPT="READY> "; autoload -U compinit; compinit -u -D; eval "$(nsbridgectl completion zsh)"',
    "fish": "function fish_prompt; echo 'READY> '; end; nsbridgectl completion fish | source",
}
# The same, to have what stands below SHARE: each shell loads it when it is needed, bash by its package bash-completion.
INSTALLED = {
    "bash": 'PS1="READY> "; for name in SHARE/bash-completion/completions/*; do . "$name"; done',
    "zsh": 'PROMPT="READY> "; fpath=(SHARE/zsh/site-functions $fpath); autoload -U compinit; compinit -u -D',
    "fish": "function fish_prompt; echo 'READY> '; end; set -p fish_complete_path SHARE/fish/vendor_completions.d",
}


class Shell:
    """A shell with our completion."""

    def __init__(self, name: str, home: Path, settings: dict[str, str] = PRINTED) -> None:
        setting = settings[name].replace("SHARE", str(home))
        environment = {
            "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "NSBRIDGE_CONTROL": "/nonexistent",
        }
        self.terminal = Terminal(SHELLS[name], (200, 24), **environment, TERM="dumb", XDG_CONFIG_HOME=str(home))
        self.terminal.type(f"{setting}; echo SET''TLED\n".encode())
        self.terminal.see("SETTLED")
        self.terminal.see("READY>")

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.terminal.close()

    def press_tab(self, line: str) -> str:
        """Return the line after TAB; it is then made an argument of echo, which prints it."""
        self.terminal.type(f"{line}\t\x01echo G''OT \x05 END\n".encode())
        self.terminal.see("GOT ")
        self.terminal.see(" END")
        return self.terminal.shown.rpartition("GOT ")[2].partition(" END")[0].strip()


@pytest.mark.parametrize("name", SHELLS)
def test_tab_completes_commands_options_values_and_names(name: str, tmp_path: Path) -> None:
    (tmp_path / "only.toml").write_text("")
    with daemon() as path, Shell(name, tmp_path) as shell:
        completed = {
            "nsbridgectl resta": "nsbridgectl restart",
            "nsbridgectl restart --wa": "nsbridgectl restart --wait",
            "nsbridgectl dead sh": "nsbridgectl dead show",
            "nsbridgectl top --sort me": "nsbridgectl top --sort memory",
            "nsbridgectl --timeout 3 tai": "nsbridgectl --timeout 3 tail",
            f"nsbridgectl -s {path} inspect orders:w": f"nsbridgectl -s {path} inspect orders:web",
            f"nsbridgectl --socket={path} stop orders:l": f"nsbridgectl --socket={path} stop orders:legacy",
            f"nsbridgectl -s {path} restart al": f"nsbridgectl -s {path} restart all",
            f"nsbridgectl -s {path} dead show o": f"nsbridgectl -s {path} dead show {LETTER['id']}",
            "nsbridge jour": "nsbridge journal",
            "nsbridge demo --runtime unsh": "nsbridge demo --runtime unshare",
            f"nsbridged -c {tmp_path}/on": f"nsbridged -c {tmp_path}/only.toml",
            f"nsbridge journal {tmp_path}/on": f"nsbridge journal {tmp_path}/only.toml",
        }
        assert {line: shell.press_tab(line) for line in completed} == completed


@pytest.mark.parametrize("name", SHELLS)
def test_what_is_installed_completes_as_well(name: str, tmp_path: Path) -> None:
    share.write(tmp_path, "0.2.0")
    with daemon() as path, Shell(name, tmp_path, INSTALLED) as shell:
        completed = {
            "nsbridgectl resta": "nsbridgectl restart",
            f"nsbridgectl -s {path} inspect orders:w": f"nsbridgectl -s {path} inspect orders:web",
            "nsbridge demo --runtime unsh": "nsbridge demo --runtime unshare",
            "nsbridged --che": "nsbridged --check",
        }
        assert {line: shell.press_tab(line) for line in completed} == completed


@pytest.mark.parametrize("name", SHELLS)
def test_tab_without_a_daemon_changes_nothing_and_says_nothing(name: str, tmp_path: Path) -> None:
    with Shell(name, tmp_path) as shell:
        seen = len(shell.terminal.shown)
        assert shell.press_tab("nsbridgectl stop ord") == "nsbridgectl stop ord"
        assert "nsbridged" not in shell.terminal.shown[seen:]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_has_every_command_and_option_there_is(shell: str) -> None:
    script = completion.answer(shell, [])
    words = set(re.split(r"[^\w-]+", script))
    for program in completion.PROGRAMS:
        for path in program.command.walk():
            for option in path[-1].options:
                for flag in option.flags:
                    shown = flag.lstrip("-") if shell == "fish" else flag
                    assert shown in words, (path[-1].name, flag)
            assert path[-1].name in words


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_shell_finds_no_fault_with_its_script(shell: str) -> None:
    done = subprocess.run(
        [shell, "-n"], input=completion.answer(shell, []), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_shellcheck_has_nothing_to_say_about_the_script_for_bash() -> None:
    script = completion.answer("bash", [])
    done = subprocess.run(["shellcheck", "-s", "bash", "-"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def _asked(path: str, *words: str) -> tuple[int, str, str]:
    with ctl("completion", *words, control=path) as process:
        stdout, stderr = process.communicate(timeout=DEADLINE)
    return process.returncode, stdout, stderr


def test_names_are_those_of_routes_and_agents() -> None:
    with daemon() as path:
        assert _asked(path, "names") == (0, "orders\norders:web\norders:legacy\n", "")


def test_a_name_that_a_shell_could_misread_is_left_out() -> None:
    def hostile(api: FakeApi) -> None:
        api.status = status_document(agent("orders:$(reboot)"), agent("orders:web"), agent("a b"), agent("\x1b[2J"))

    with daemon(hostile) as path:
        assert _asked(path, "names") == (0, "orders\norders:web\n", "")


def test_an_answer_of_another_shape_is_no_answer() -> None:
    def strange(api: FakeApi) -> None:
        api.status = {"routes": 3}

    with daemon(strange) as path:
        assert _asked(path, "names") == (0, "", "")


def test_a_silent_daemon_delays_completion_by_half_a_second() -> None:
    with Served() as served:  # nobody runs the loop
        started = time.monotonic()
        assert _asked(served.path, "names") == (0, "", "")
        assert time.monotonic() - started < completion.TIMEOUT + 2  # starting Python on a busy machine


@pytest.mark.parametrize(
    "typed",
    [["-s", "PATH"], ["-sPATH"], ["--socket", "PATH"], ["--socket=PATH"], ["-c", "CONFIG"], ["--config=CONFIG"]],
)
def test_the_daemon_asked_is_the_one_that_the_typed_words_mean(typed: list[str], tmp_path: Path) -> None:
    with daemon() as path:
        config = tmp_path / "nsbridge.toml"
        config.write_text(f'[daemon]\ncontrol = {{ path = "{path}" }}\n')
        words = [word.replace("PATH", path).replace("CONFIG", str(config)) for word in typed]
        assert _asked("/nonexistent", "names", "--", "nsbridgectl", *words, "stop", "")[1].startswith("orders\n")


@pytest.mark.parametrize(
    "typed", [["-s"], ["-s", ""], ["-c", "/nonexistent.toml"], ["--frob", "x"], ["--timeout", "x"]]
)
def test_what_is_half_typed_is_no_error(typed: list[str]) -> None:
    assert _asked("/nonexistent", "names", "--", "nsbridgectl", *typed) == (0, "", "")
