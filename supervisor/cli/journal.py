"""Shows a journal to a person: `nsbridge journal`."""

from __future__ import annotations

from nsbridge.agents.journalreader import Facts
from nsbridge.config.text import escape
from nsbridge.supervisor.cli import render


def lines(facts: Facts) -> list[str]:
    """Return the same for a person."""
    shown = {key: value for key, value in facts.items() if key not in ("schema", "messages", "omitted")}
    messages, text = facts.get("messages"), render.tree(shown)
    if isinstance(messages, list) and messages:
        rows = [["SEQ", "TYPE", "BYTES", "MESSAGE"]]
        rows += [[escape(str(message[key])) for key in ("seq", "type", "bytes", "shown")] for message in messages]
        text += ["", *render.table(rows)]
        if facts["omitted"]:
            text.append(f"and {facts['omitted']} more (--all shows them)")
    return text
