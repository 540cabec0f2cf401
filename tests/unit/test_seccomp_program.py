"""The filter of system calls as a program, run here for every machine, also for those that are not here."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

import pytest

from nsbridge.agents.confinement import callrules, seccomp
from tests.agents_calls import AGENTS

ALLOW, REFUSE, UNKNOWN, KILL = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000
PID = 4711
QUEUE, SPOOL = AGENTS["queue, exactly-once"], AGENTS["spool"]
each_agent = pytest.mark.parametrize("rules", AGENTS.values(), ids=AGENTS.keys())


def run(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Return the kernel's verdict on one call."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *(*arguments, *[0] * (6 - len(arguments))))
    at = accumulator = 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        else:
            holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: accumulator & operand}[code]
            at += if_true if holds else if_false


GOOD = {
    "mmap": (0, 4096, 3, 0x22),
    "kill": (PID, 9),
    "tgkill": (PID, 1, 9),
    "ioctl": (3, 0x5421),
    "prctl": (15,),
    "fcntl": (3, 1030),
    "sched_setaffinity": (0,),
    "msgctl": (1, 2),
    "msgrcv": (1, 0, 0, 0, 0o44000),
    "seccomp": (1, 5),
}


@each_agent
@pytest.mark.parametrize("name", sorted(seccomp.ARCHITECTURES))
def test_every_call_has_the_table_s_verdict_on_every_machine(name: str, rules: tuple[str, ...]) -> None:
    machine = seccomp.ARCHITECTURES[name]
    program = seccomp.program(machine, rules, PID)
    calls = {callrules.RULES[rule].call for rule in rules}
    allowed = {machine.numbers[call] for call in calls if call in machine.numbers}
    clone = (0x1200011,) if "clone:child" in rules else (0x3D0F00,)
    some = {"clone": clone, "socket": (1, 2) if "socket:unix" in rules else (2, 1)}
    first = {machine.numbers[call]: arguments for call, arguments in (GOOD | some).items()}
    for number in range(600):
        verdict = run(program, machine.audit_arch, number, *first.get(number, ()))
        if number in allowed:
            assert verdict == ALLOW, number
        elif number == machine.numbers["clone3"] or number > 469:
            assert verdict == UNKNOWN, number
        else:
            assert verdict == REFUSE, number


def test_each_rule_allows_only_what_it_says() -> None:
    """Several rules of one call are alternatives; the conditions of one rule all hold."""
    machine = seccomp.ARCHITECTURES["x86_64"]

    def verdict(rules: Iterable[str], name: str, *arguments: int) -> int:
        return run(seccomp.program(machine, rules, PID), machine.audit_arch, machine.numbers[name], *arguments)

    both = ("fcntl:list", "fcntl:lease")
    assert [verdict(both, "fcntl", 3, command) for command in (2, 3, 1024, 1030)] == [ALLOW] * 4
    assert [verdict(both, "fcntl", 3, command) for command in (0, 1, 4, 8, 10, 15, 1026)] == [REFUSE] * 7
    death = ("prctl:death", "prctl:name")
    assert [verdict(death, "prctl", 1, 9), verdict(death, "prctl", 15, 0)] == [ALLOW] * 2
    assert [verdict(death, "prctl", 1, 0), verdict(death, "prctl", 1, 18), verdict(death, "prctl", 4, 9)] == [
        REFUSE
    ] * 3
    assert [verdict(["mmap"], "mmap", 0, 1, 3, flags) for flags in (0x22, 0x21, 0x23, 0x02)] == [ALLOW] + [REFUSE] * 3
    assert [verdict(["mmap:shared"], "mmap", 0, 1, 3, flags) for flags in (0x21, 0x01)] == [ALLOW, REFUSE]
    clones = ("clone:thread", "clone:child")
    assert [verdict(clones, "clone", flags) for flags in (0x3D0F00, 0x7D0F00, 0x1200011, 0x11)] == [ALLOW] * 4
    wrong = (0x100, 0x10100, 0x3D0F00 | 0x8000, 0x3D0F00 | 0x4000_0000, 0x1208011, 0, 0x12)
    assert [verdict(clones, "clone", flags) for flags in wrong] == [REFUSE] * len(wrong)
    assert verdict((*both, *clones), "msgsnd") == REFUSE


@pytest.mark.parametrize("kind", callrules.KINDS)
def test_a_rule_that_is_in_no_agent_does_not_exist(kind: str) -> None:
    """Every name of a kind is a rule, whose call has a number on each machine or on one of them."""
    calls = callrules.KINDS[kind]
    names = {*calls.always, *calls.source, *calls.sink, *(calls.exact_sink or ()), *sum(calls.configured.values(), ())}
    assert names <= callrules.RULES.keys()
    used = {name for rules in AGENTS.values() for name in rules}
    assert used == callrules.RULES.keys()
    numbers = set().union(*(machine.numbers for machine in seccomp.ARCHITECTURES.values()))
    assert {rule.call for rule in callrules.RULES.values()} <= numbers
    assert numbers - {rule.call for rule in callrules.RULES.values()} == {"clone3", "keyctl"}


@pytest.mark.parametrize("name", sorted(seccomp.ARCHITECTURES))
def test_a_call_by_another_architecture_s_numbers_kills(name: str) -> None:
    program = seccomp.program(seccomp.ARCHITECTURES[name], SPOOL, PID)
    for other in (0x40000003, 0x40000028, 0):  # i386, arm, none
        assert run(program, other, 0) == KILL


@pytest.mark.parametrize("name", sorted(seccomp.ARCHITECTURES))
def test_the_bits_above_the_32nd_hide_nothing(name: str) -> None:
    """The kernel looks at 32 bits of these arguments, as the filter does."""
    machine = seccomp.ARCHITECTURES[name]
    program = seccomp.program(machine, QUEUE, PID)
    high = 1 << 32
    assert run(program, machine.audit_arch, machine.numbers["kill"], high | PID) == ALLOW
    assert run(program, machine.audit_arch, machine.numbers["kill"], high | 1) == REFUSE
    assert run(program, machine.audit_arch, machine.numbers["mmap"], 0, 4096, high | 4) == REFUSE


def test_filter_is_completed_by_the_pid_of_its_process() -> None:
    """The supervisor compiles it once for all agents with these rules; each may send a signal to itself only."""
    machine = seccomp.ARCHITECTURES["x86_64"]
    compiled = seccomp.compiled(machine, QUEUE)
    kill = machine.numbers["kill"]
    for pid in (PID, PID + 1):
        verdicts = [run(compiled.of_process(pid), machine.audit_arch, kill, other) for other in (PID, PID + 1)]
        assert verdicts == [ALLOW if other == pid else REFUSE for other in (PID, PID + 1)]
    assert run(compiled.code, machine.audit_arch, kill, 1) == REFUSE
