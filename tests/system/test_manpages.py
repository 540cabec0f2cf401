"""The manual pages as man shows them: rendered by mandoc, which also has the say whether they are right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nsbridge.supervisor.cli.commands import share
from nsbridge.supervisor.cli.commands.completion import PROGRAMS
from nsbridge.supervisor.cli.commands.model import Program

PAGES = {Path(name).name: text for name, text in share.files("0.2.0").items() if name.startswith("man/")}
EXAMPLE = Path(__file__).parents[2] / "config" / "example.toml"
EXPLAINED = Path(__file__).parents[2] / "docs" / "configuration.md"
BY_PROGRAM = pytest.mark.parametrize("program", PROGRAMS, ids=[program.name for program in PROGRAMS])


def _mandoc(page: str, *options: str) -> str:
    """Return mandoc's output about the page, which must not be an error."""
    done = subprocess.run(["mandoc", *options], input=PAGES[page], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def _shown(program: Program) -> str:
    """Return the page as a person reads it, without overstriking, each run of blanks as one."""
    text = _mandoc(f"{program.name}.{program.section}", "-Tutf8", "-Owidth=200")
    return re.sub(r"\s+", " ", re.sub(".\b", "", text))


def test_commands_and_configuration_each_have_a_page() -> None:
    assert set(PAGES) == {"nsbridge.1", "nsbridgectl.1", "nsbridged.8", "nsbridge.toml.5"}


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_has_no_warning_and_no_matter_of_style_either(page: str) -> None:
    assert _mandoc(page, "-Tlint") == ""


@BY_PROGRAM
def test_a_page_has_every_command_option_operand_and_its_help(program: Program) -> None:
    text = _shown(program)
    for path in program.command.walk():
        command = path[-1]
        assert (command.summary if len(path) == 1 else command.text) in text or command.commands
        for term, meaning in [
            *((option.spelled, option.help) for option in command.options),
            *((operand.value.metavar, operand.help) for operand in command.operands),
        ]:
            assert re.search(rf" {re.escape(term)} {re.escape(meaning)}", text, re.IGNORECASE), term
    for _, terms in program.notes:
        for term, meaning in terms:
            assert re.search(rf" {re.escape(term)} {re.escape(meaning)}", text, re.IGNORECASE), term


@BY_PROGRAM
def test_a_page_names_only_pages_that_there_are(program: Program) -> None:
    for name in program.see_also:
        assert name.replace("(", ".").rstrip(")") in PAGES
        assert name in _shown(program)


def test_the_configuration_s_page_shows_the_example_unchanged() -> None:
    shown = re.sub(".\b", "", _mandoc("nsbridge.toml.5", "-Tutf8", "-Owidth=200"))
    lines = [line.strip() for line in shown.splitlines()]
    for line in EXAMPLE.read_text().splitlines():
        assert line.strip() in lines


def test_every_key_has_its_explanation_in_the_page() -> None:
    """Each row of a table of docs/configuration.md is a term, and each paragraph is there."""
    shown = _flat(_mandoc("nsbridge.toml.5", "-Tutf8", "-Owidth=200"))
    rows = re.findall(r"^\| `([a-z_.]+)` \| ([^|]+) \|", EXPLAINED.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 50
    for key, meaning in rows:
        if meaning == "names":  # the head of a table
            continue
        assert f"{key} {_flat(_plain(meaning))[:60]}" in shown, key
    for paragraph in re.findall(r"(?:^|\n\n)([A-Z`][^|#`\n].*?)\n\n", EXPLAINED.read_text(encoding="utf-8"), re.DOTALL):
        assert _flat(_plain(paragraph)) in shown


def _plain(markdown: str) -> str:
    """Return the text without Markdown's marks."""
    without_links = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", markdown)
    return without_links.replace("`", "").replace("**", "")


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(".\b", "", text)).strip()


def test_a_command_writes_them_where_man_and_the_shells_look(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "nsbridge.supervisor.cli.commands.share", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(share.files("0.2.0"))
    assert done.stdout.splitlines() == [f"{tmp_path}/{name}" for name in share.files("0.2.0")]


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 2), (["/proc/nowhere"], 1)])
def test_a_wrong_directory_costs_one_line(arguments: list[str], code: int) -> None:
    command = [sys.executable, "-P", "-m", "nsbridge.supervisor.cli.commands.share", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)


def test_a_reproducible_build_says_its_own_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert " 1970-01-02 " in share.files("0.2.0")["man/man1/nsbridge.1"]
