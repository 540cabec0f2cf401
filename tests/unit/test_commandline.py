"""Command lines: what they mean, the error for a wrong one, and that the help is complete."""

from __future__ import annotations

import pytest

from nsbridge.config.errors import UsageError
from nsbridge.supervisor.cli import nsbridgectl as ctl
from nsbridge.supervisor.cli.commands import helptext, nsbridge, nsbridgectl, nsbridged
from nsbridge.supervisor.cli.commands.model import Command, Operand, Program, Value
from nsbridge.supervisor.cli.commands.parse import Parsed, parse

PROGRAMS = (nsbridgectl.PROGRAM, nsbridge.PROGRAM, nsbridged.PROGRAM)
PATHS = [(program, path) for program in PROGRAMS for path in program.command.walk()]
EVERY = pytest.mark.parametrize(
    ("program", "path"), PATHS, ids=[" ".join(command.name for command in path) for _, path in PATHS]
)


def ctl_line(line: str) -> Parsed:
    return parse(nsbridgectl.PROGRAM.command, line.split())


@pytest.mark.parametrize(
    ("line", "command", "expected"),
    [
        ("status", "status", {"names": [], "json": False, "socket": None, "config": None, "timeout": None}),
        ("status orders orders:web", "status", {"names": ["orders", "orders:web"]}),
        ("--json status", "status", {"names": [], "json": True}),
        ("--json tail", "tail", {"json": True, "follow": False, "lines": 20}),
        ("status --json", "status", {"names": [], "json": True}),
        ("-s /x status", "status", {"socket": "/x"}),
        ("-s/x status", "status", {"socket": "/x"}),
        ("status --socket=/x", "status", {"socket": "/x"}),
        ("-c a.toml status", "status", {"config": "a.toml"}),
        ("--timeout 2.5 version", "version", {"timeout": 2.5}),
        ("restart all --wait", "restart", {"names": ["all"], "wait": True}),
        ("--wait restart all", "restart", {"names": ["all"], "wait": True}),
        ("tail -f -n 5 orders", "tail", {"name": "orders", "follow": True, "lines": 5}),
        ("tail -n0", "tail", {"name": None, "lines": 0}),
        ("events -f orders:web", "events", {"name": "orders:web", "follow": True, "lines": 20}),
        ("reload", "reload", {"dry_run": False}),
        ("reload --dry-run", "reload", {"dry_run": True}),
        ("top --once --sort cpu -d 0.5", "top", {"once": True, "sort": "cpu", "interval": 0.5, "names": []}),
        ("status -- -x", "status", {"names": ["-x"]}),
        ("-- status --json", "status", {"names": ["--json"], "json": False}),
        ("status -", "status", {"names": ["-"]}),
        ("dead list orders", "dead list", {"names": ["orders"]}),
        ("dead show a:b/1", "dead show", {"id": "a:b/1"}),
        ("--json dead retry all", "dead retry", {"names": ["all"], "json": True}),
        ("dead drop x y", "dead drop", {"names": ["x", "y"]}),
        ("completion zsh", "completion", {"what": "zsh", "words": []}),
        ("completion names -- nsbridgectl -s /x start", "completion", {"words": ["nsbridgectl", "-s", "/x", "start"]}),
    ],
)
def test_a_command_line_means_what_it_says(line: str, command: str, expected: dict[str, object]) -> None:
    parsed = ctl_line(line)
    assert (parsed.command, parsed.wants) == (command, "")
    assert parsed.values | expected == parsed.values


@pytest.mark.parametrize(
    ("line", "command", "wants"),
    [
        ("--help --nonsense", "", "help"),
        ("status -h", "status", "help"),
        ("dead show --help", "dead show", "help"),
        ("dead --help", "dead", "help"),
        ("--version", "", "version"),
        ("status --version", "status", "version"),
    ],
)
def test_help_and_version_are_asked_of_the_command_typed_so_far(line: str, command: str, wants: str) -> None:
    parsed = ctl_line(line)
    assert (parsed.command, parsed.wants) == (command, wants)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "which command? one of status, start"),
        ("frobnicate", "no such command: frobnicate; it must be one of status, "),
        ("start", "start needs NAME, the name of a route or an agent, or all"),
        ("inspect", "inspect needs NAME"),
        ("inspect a b", "inspect: too many arguments: b"),
        ("tail a b", "tail: too many arguments: b"),
        ("shutdown now", "shutdown: too many arguments: now; --help says what it takes"),
        ("status --wait", "status does not take --wait"),
        ("status -f", "status does not take -f"),
        ("status -n 3", "status does not take -n"),
        ("status --dry-run", "status does not take --dry-run"),
        ("completion bash --json", "completion does not take --json"),
        ("status --nonsense --help", "no such option: --nonsense"),
        ("status -s", "-s needs a value: PATH"),
        ("status --socket=", "it must be a path"),
        ("--timeout 0 status", "above 0"),
        ("--timeout nan status", "above 0"),
        ("--timeout soon status", "--timeout 'soon': it must be a number of seconds above 0, a day at most"),
        ("tail -n -1", "0 or more"),
        ("events -n x", "0 or more"),
        ("--json=yes status", "no such option"),
        ("-fn 3 tail", "no such option"),
        ("top --sort beauty", "--sort 'beauty': it must be one of name, rate, "),
        ("top -d 0", "above 0"),
        ("completion tcsh", "SHELL 'tcsh': it must be one of bash, zsh, fish"),
        ("completion", "completion needs SHELL"),
        ("dead", "dead needs one of list, show, retry, drop"),
        ("dead frobnicate", "no such command: dead frobnicate; it must be one of list, show, retry, drop"),
        ("dead show", "dead show needs ID, an ID that dead list shows"),
        ("dead show a b", "dead show: too many arguments: b"),
        ("dead retry", "dead retry needs ID, an ID, the name"),
        ("dead drop", "dead drop needs ID"),
        ("dead list --wait", "dead list does not take --wait"),
    ],
)
def test_a_wrong_command_line_gets_one_line_of_complaint(line: str, complaint: str) -> None:
    with pytest.raises(UsageError) as wrong:
        ctl_line(line)
    assert complaint in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_value_that_a_command_lacks_is_an_error_not_none() -> None:
    with pytest.raises(AttributeError):
        _ = ctl_line("status").wait


def test_operands_are_given_out_in_their_order() -> None:
    pair = Command("x", "x", operands=(Operand("one", "", Value("A", int)), Operand("many", "", Value("B"), 0, 2)))
    assert parse(pair, ["1"]).values == {"one": 1, "many": []}
    assert parse(pair, ["1", "2", "3"]).values == {"one": 1, "many": ["2", "3"]}
    with pytest.raises(UsageError, match="too many arguments: 4; --help says what it takes"):
        parse(pair, ["1", "2", "3", "4"])


def test_commands_of_the_table_and_their_functions_correspond() -> None:
    assert {command.name for command in nsbridgectl.PROGRAM.command.commands} == {
        *ctl.COMMANDS,
        "completion",
        "metrics",
    }


# -- help


@EVERY
def test_help_has_every_command_operand_and_option_in_80_columns(program: Program, path: tuple[Command, ...]) -> None:
    text = helptext.show(program, path)
    assert text.startswith("usage: " + " ".join(command.name for command in path))
    words = text.replace(",", " ").split()
    command = path[-1]
    for flag in [flag for above in path for option in above.options for flag in option.flags]:
        assert flag in words or command is not path[0], flag
    for word in [flag for option in command.options for flag in option.flags]:
        assert word in words
    for word in [below.name for below in command.commands] + [operand.value.metavar for operand in command.operands]:
        assert word in words
    assert [line for line in text.splitlines() if len(line) > 79] == []


@EVERY
def test_a_help_text_is_a_sentence_and_a_summary_is_none(program: Program, path: tuple[Command, ...]) -> None:
    command = path[-1]
    assert command.text.endswith(".")
    for summary in [command.summary, *(option.help for option in command.options)]:
        assert not summary.endswith(".")


def test_the_help_of_nsbridgectl_says_its_exit_codes() -> None:
    text = helptext.show(nsbridgectl.PROGRAM, (nsbridgectl.PROGRAM.command,))
    for code in ("0", "1", "2", "3", "4", "5", "77"):
        assert f"\n  {code:2}  " in text
