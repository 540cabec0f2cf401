"""Text that `nsbridgectl inspect` prints for people; --json has all of it.

nsbridgectl imports this for one command only; see render.py.
"""

from __future__ import annotations

from nsbridge.config.text import duration, escape
from nsbridge.supervisor.cli import render

TYPE_CHECKING = False  # typing is slow to load and is needed by the type checkers only
if TYPE_CHECKING:
    from typing import Any

_INDENT = 2
_LABEL = 14  # columns of what stands before a line's facts
_FUTURE = "_for_children"  # namespaces of processes that it would start, which are its own


def lines(agent: dict[str, Any]) -> list[str]:
    """Show one agent: its process and, on a line each, the processes that send for it."""
    text = [escape(f"{agent['name']}  {agent['state']}{render.reason(agent)}")]
    if "pid" not in agent:
        wait = agent.get("retry_in_s")
        return text + _fact("process", ["none" + (f", next try in {wait:.1f} s" if wait is not None else "")])
    text += _fact("process", [*_process(agent), f"child of {agent['ppid']}"])
    text += _fact("user", [_ids(agent["uids"]) + ":" + _ids(agent["gids"])])
    memory = agent["memory"]
    text += _fact("memory", [f"{_size(memory['own'])} its own", f"{_size(memory['rss'])} resident"])
    cpu = agent["cpu"]
    text += _fact("cpu", [f"{cpu['percent']} %", f"{cpu['user_s']} s user", f"{cpu['system_s']} s system"])
    text += _fact("confined by", _confinement(agent))
    if evidence := agent.get("evidence"):
        text += _fact("evidence", [evidence, *([f"no counter: {agent['no_counter']}"] if agent["no_counter"] else [])])
    text += _fact("capabilities", _capabilities(agent["capabilities"]))
    text += _namespaces(agent["namespaces"])
    text += _descriptors(agent["descriptors"])
    for number, sender in enumerate(agent["senders"]):
        facts = [f"{_size(sender['memory']['own'])} its own", f"{sender['cpu']['percent']} % cpu"]
        text += _fact(f"sender {number}", [*_process(sender), *facts, f"{sender['descriptors']['count']} descriptors"])
    return text


def _fact(label: str, words: list[str]) -> list[str]:
    return render.listed(f"{'':{_INDENT}}{label:{_LABEL}}", [escape(word) for word in words])


def _process(process: dict[str, Any]) -> list[str]:
    threads = process["threads"]
    up = f"up {duration(process['uptime_s'])}"
    return [f"pid {process['pid']}", process["status"], f"{threads} thread{'' if threads == 1 else 's'}", up]


def _ids(ids: dict[str, int]) -> str:
    """Return one number where all three are the same."""
    return "/".join(str(number) for number in dict.fromkeys(ids.values()))


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:.1f} MB"


def _confinement(process: dict[str, Any]) -> list[str]:
    seccomp = [] if process["seccomp"] == "off" else [f"seccomp ({process['seccomp']})"]
    others = [name for name in ("landlock", "no_new_privs") if process.get(name)]
    return [*seccomp, *others] or ["nothing"]


def _capabilities(sets: dict[str, list[str]]) -> list[str]:
    return [f"{kind}: {' '.join(names)}" for kind, names in sets.items() if names] or ["none"]


def _namespaces(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return the namespaces, sorted by their owner."""
    whose: dict[tuple[bool, bool], list[str]] = {}
    for kind, entry in found.items():
        if not kind.endswith(_FUTURE):
            owners = (entry.get("container") == "same", entry["host"] == "same")
            whose.setdefault(owners, []).append(f"{kind} {entry['inode']}")
    names = {
        (True, False): "container's",
        (False, True): "host's",
        (True, True): "of both",
        (False, False): "empty",
    }
    return [line for owners, label in names.items() if owners in whose for line in _fact(label, whose[owners])]


def _descriptors(descriptors: dict[str, Any]) -> list[str]:
    listed = [f"{entry['fd']} {entry['target']}" for entry in descriptors["open"]]
    rest = descriptors["count"] - len(listed)
    return _fact(f"{descriptors['count']} files", [*listed, *([f"and {rest} more"] if rest > 0 else [])])
