"""The table of system calls in docs/security.md, made from the rules: python -m tests.calls_table writes it."""

from __future__ import annotations

import sys
from pathlib import Path

from nsbridge.agents.confinement import callrules
from nsbridge.agents.confinement.callrules import KindCalls, Rule
from nsbridge.agents.endpoints import kinds

DOCUMENT = Path(__file__).parents[1] / "docs" / "security.md"
BEGIN = "<!-- from here `make calls` writes -->\n"
END = "<!-- to here -->\n"


def _groups() -> dict[str, tuple[str, ...]]:
    """Return the names of the rules for each group of agents."""
    groups = {
        "every agent": callrules.BASE,
        "every source": callrules.SOURCE,
        "every sink": callrules.SINK,
        "`fsync = true`": callrules.FSYNC,
    }
    for name in kinds.KINDS:
        groups |= _groups_of(name, callrules.KINDS[name])
    groups["an agent until it has forked its senders"] = callrules.FORKING
    groups["a sender, and nothing else"] = callrules.SENDER
    return groups


def _groups_of(name: str, kind: KindCalls) -> dict[str, tuple[str, ...]]:
    groups = {
        name: kind.always,
        f"{name}, source": kind.source,
        f"{name}, sink": kind.sink,
        f"{name}, exactly-once sink": kind.exact_sink or (),
    }
    groups |= {f"{name}, with `{key}`": names for key, names in kind.configured.items()}
    return {group: names for group, names in groups.items() if names}


def table() -> str:
    """Return the table as Markdown: the calls of each group, then the reason for each call."""
    lines = ["| who | calls |", "|---|---|"]
    lines += [f"| {group} | {', '.join(map(_shown, names))} |" for group, names in _groups().items()]
    lines += ["", "| call | only with | for |", "|---|---|---|"]
    rules = sorted(callrules.RULES.items(), key=lambda item: item[0])
    lines += [f"| {_shown(name)} | {_limits(rule)} | {rule.reason} |" for name, rule in rules]
    return "\n".join(lines) + "\n"


def _shown(name: str) -> str:
    return f"`{name}`"


def _limits(rule: Rule) -> str:
    return " ".join(test.shown for test in rule.tests)


def written(text: str) -> str:
    """Return the document with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{DOCUMENT} is up to date\n")
