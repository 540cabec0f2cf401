"""README and docs: each link leads somewhere, each named command exists, the figures are those that were measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import readme
from nsbridge.supervisor.cli.commands import nsbridge, nsbridgectl
from nsbridge.supervisor.cli.commands.model import Program

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
PAGES += [ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(page: Path) -> list[str]:
    return [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in links(page):
        name, _sign, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong


def test_index_lists_every_page() -> None:
    index = ROOT / "docs/index.md"
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {index.name} == {
        link for link in links(index) if "/" not in link
    }


def test_named_files_and_make_targets_exist() -> None:
    text = README.read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z-]+)", text))
    assert targets
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert targets <= made
    files = re.findall(r"-f (\S+)", " ".join(re.findall(r"`(podman [^`]+)`", text)))
    assert files
    assert all((ROOT / name).exists() for name in files)


@pytest.mark.parametrize("program", [nsbridge.PROGRAM, nsbridgectl.PROGRAM], ids=lambda program: program.command.name)
def test_named_commands_exist(program: Program) -> None:
    """Those in a row of a table may share the program: `nsbridgectl status`, `top`."""
    text, name = README.read_text(encoding="utf-8"), program.command.name
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    named = set(re.findall(rf"^{name} ([a-z]+)", blocks, re.MULTILINE))
    for cell in re.findall(rf"^\| `{name} (.*?) \|", text, re.MULTILINE):
        first, *others = cell.split("`, `")
        named |= {first.split()[0].strip("`"), *(other.split()[0].strip("`") for other in others)}
    assert len(named) > 2
    assert named - {command.name for command in program.command.commands} == set()


def test_figures_are_those_of_the_benchmarks() -> None:
    assert readme.written() in README.read_text(encoding="utf-8")


def test_readme_has_two_commands_before_installing() -> None:
    before = README.read_text(encoding="utf-8").partition("## Install it")[0]
    assert re.findall(r"```sh\n(.*?)```", before, re.DOTALL) == ["./run demo\n./run test\n"]
