"""Names of the files that an agent has in the state directory:

STATE_DIR/journal/ROUTE/AGENT.out    messages that it has taken (if it has a source)
STATE_DIR/journal/ROUTE/AGENT.in     messages that it has handed over (if it has a sink)
STATE_DIR/journal/ROUTE/AGENT.waiting  names of files that it will take next (journal/waitinglist.py)
STATE_DIR/identity/ROUTE/AGENT       its user in its container (identity/identity.py)
STATE_DIR/dead/ROUTE/AGENT/          messages that it could never hand over (dead/letters.py)
STATE_DIR/dead/ROUTE/.retry/AGENT/   dead letters of the other agent that it takes again (dead/retries.py)
"""

from __future__ import annotations

from pathlib import Path

from nsbridge.config import names

JOURNAL, IDENTITY, DEAD = "journal", "identity", "dead"
WAITING = "waiting"
DEAD_RETRY = ".retry"
EPOCH, SEQ = "[0-9a-f]{16}", "[0-9]{20}"  # patterns of the parts of a stem


def journal_path(state_dir: str, agent: str, side: str) -> Path:
    """Return the path of the journal of `agent` (ROUTE:AGENT), for its `out` or `in` side; of WAITING, its list."""
    route, name = names.split(agent)
    return Path(state_dir, JOURNAL, route, f"{name}.{side}")


def dead_letters(state_dir: str, agent: str) -> Path:
    """Return the directory of the dead letters of `agent` (ROUTE:AGENT)."""
    route, name = names.split(agent)
    return Path(state_dir, DEAD, route, name)


def dead_retries(state_dir: str, agent: str) -> Path:
    """Return the directory of the dead letters that `agent` (ROUTE:AGENT) takes again."""
    route, name = names.split(agent)
    return Path(state_dir, DEAD, route, DEAD_RETRY, name)


def stem(epoch: int, seq: int) -> str:
    """Return what the names of a dead letter's files begin with. They sort in the order of the messages."""
    return f"{epoch:016x}-{seq:020d}"
