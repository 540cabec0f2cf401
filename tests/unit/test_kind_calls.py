"""The system calls of each endpoint kind beyond those of every agent: a new one is seen here, and wants a reason."""

from __future__ import annotations

import pytest

from nsbridge.agents.confinement import callrules
from nsbridge.agents.confinement.callrules import KindCalls
from nsbridge.agents.endpoints.kinds import KINDS

_WATCH = {"inotify_init1", "inotify_add_watch", "inotify_rm_watch", "chdir", "fchdir"}
_FILES = {"openat2", "readlinkat", "fstatfs", "mkdirat", "fchmod", *_WATCH}
_THREADS = {"clone:thread", "set_robust_list", "rseq"}
EXPECTED = {
    "spool": _FILES | {"renameat2", "fcntl:lease", "sched_yield", "statx"},
    "log": _FILES | {"fcntl:lease", "statx"},
    "file": _FILES | {"fcntl:lease", "sched_yield"},
    "queue": _THREADS
    | {"msgget", "msgctl:look", "msgctl:limit", "msgsnd", "msgrcv", "msgrcv:copy"}
    | {"tgkill", "rt_sigaction", "waitid", "kill"},
    "mqueue": _WATCH | {"mq_open", "mq_getsetattr", "mq_timedsend", "mq_timedreceive", "fchmod"},
    "nats": {"socket:tcp", "connect", "getpeername", "setsockopt", "shutdown"},
}
EXPECTED["socket"] = (
    _FILES
    | {"socket:unix", "connect:unix", "bind", "listen", "accept4", "preadv2", "pwritev2"}
    | {"fchmodat", "renameat2", "shutdown", "statx"}
)
SOCKET_CALLS = {"socket", "socketpair", "bind", "connect", "listen", "accept", "accept4", "sendmsg", "recvmsg"}
SOCKETS = {
    "nats": {"socket", "connect"},
    "socket": {"socket", "connect", "bind", "listen", "accept4"},
}  # all others make none


def rules_of(calls: KindCalls) -> set[str]:
    """Return all rules that any agent of the kind has."""
    exact, configured = calls.exact_sink or (), calls.configured.values()
    return {*calls.always, *calls.source, *calls.sink, *exact, *(name for names in configured for name in names)}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_has_these_calls_and_no_others(kind: str) -> None:
    assert rules_of(callrules.KINDS[kind]) == EXPECTED[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_kind_makes_no_other_socket_call(kind: str) -> None:
    calls = {callrules.RULES[name].call for name in (*callrules.BASE, *rules_of(callrules.KINDS[kind]))}
    assert calls & SOCKET_CALLS == SOCKETS.get(kind, set())
