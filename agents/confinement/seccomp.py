"""Compiles a table of rules (callrules.py) into the BPF program for the kernel: no I/O.

The program allows only listed calls, so calls of newer kernels are refused until a rule is added. Other calls give
EPERM, which the agent's last words then show. The program does not kill: a C library that tries a new call continues
without it. So calls newer than the table give ENOSYS, and so does clone3, whose flags no filter can see.

Some facts about filters, and what they mean here:
* A program sees the call's number and arguments, never what a pointer points to. So paths are left to Landlock.
* Numbers belong to an architecture; a process of x86_64 can also make i386's and x32's calls. Both are refused.
* Filters add up: a later one can only refuse more, and the kernel runs all of them.
* Since Linux 5.11 a call that is allowed by its number alone costs nothing: the kernel remembers it in a bitmap. On an
  older one the program is run each time, so the calls that move a message stand first.

Sources: seccomp(2), linux/filter.h, linux/seccomp.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nsbridge.agents.confinement.callrules import PID, RULES, Condition, Must, Rule
from nsbridge.agents.confinement.syscalls import ARCHITECTURES, NEWEST, Architecture

__all__ = ["ARCHITECTURES", "Architecture", "FilterProgram", "compiled", "program"]

_X32_BIT = 0x4000_0000
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data; an argument has 8 bytes, the low half first

_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06  # linux/bpf_common.h
_ALLOW = 0x7FFF_0000
_REFUSE = 0x0005_0000 | errno.EPERM
_UNKNOWN = 0x0005_0000 | errno.ENOSYS
_KILL = 0x8000_0000  # the process
_MASK = 0xFFFF_FFFF

_INSTRUCTION = struct.Struct("<HBBI")
_OPERAND, _OPERAND_AT = struct.Struct("<I"), 4

_Instruction = tuple[int, int, int, int]  # code, steps over the next ones if it holds, if it does not, operand


class FilterProgram(NamedTuple):
    """A filter that lacks only the pid of the process that installs it. The supervisor compiles it before the fork."""

    code: bytes  # an array of struct sock_filter
    pids: tuple[int, ...]  # where in `code` the pid belongs

    def of_process(self, pid: int) -> bytes:
        """Return the filter for the process `pid`."""
        code = bytearray(self.code)
        for at in self.pids:
            _OPERAND.pack_into(code, at, pid)
        return bytes(code)


def program(machine: Architecture, names: Iterable[str], pid: int) -> bytes:
    """Return the filter for these rules, as an array of struct sock_filter. `pid` is the agent's own."""
    return compiled(machine, names).of_process(pid)


def compiled(machine: Architecture, names: Iterable[str]) -> FilterProgram:
    """Return the filter for these rules."""
    allowed: dict[str, list[Rule]] = {}
    for name in names:
        allowed.setdefault(RULES[name].call, []).append(RULES[name])
    lines: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, machine.audit_arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine.has_x32:
        lines += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _REFUSE)]
    for call, number in machine.numbers.items():
        if call in allowed:
            verdict = _verdict(allowed[call])
            lines += [(_EQUAL, 0, len(verdict), number), *verdict]
    lines += [
        (_EQUAL, 1, 0, machine.numbers["clone3"]),
        (_AT_LEAST, 0, 1, NEWEST + 1),
        (_RETURN, 0, 0, _UNKNOWN),
        (_RETURN, 0, 0, _REFUSE),
    ]
    pids = [index for index, line in enumerate(lines) if line[3] == PID]
    code = b"".join(_INSTRUCTION.pack(*line[:3], line[3] & _MASK) for line in lines)
    return FilterProgram(code, tuple(index * _INSTRUCTION.size + _OPERAND_AT for index in pids))


def _verdict(rules: Sequence[Rule]) -> list[_Instruction]:
    """Return the instructions that allow the call if one of the rules does, and refuse it otherwise."""
    if any(not rule.tests for rule in rules):
        return [(_RETURN, 0, 0, _ALLOW)]
    lines: list[_Instruction] = []
    for rule in rules:
        lines += _attempt([_test(test) for test in rule.tests])
    return [*lines, (_RETURN, 0, 0, _REFUSE)]


def _attempt(tests: Sequence[list[_Instruction]]) -> list[_Instruction]:
    """Return the instructions that allow the call if all tests hold. Each ends with a jump over 1 if it does not."""
    lines: list[_Instruction] = [(_RETURN, 0, 0, _ALLOW)]
    for test in reversed(tests):
        *before, (code, if_true, if_false, operand) = test
        beyond = len(lines)
        lines = [
            *before,
            (code, if_true and beyond, if_false and beyond, operand),
            *lines,
        ]
    return lines


def _test(test: Condition) -> list[_Instruction]:
    """Return a load and comparisons; the last one jumps over 1 instruction if the test does not hold."""
    load = (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * test.argument)
    values = test.values
    if test.must is Must.HAVE_NONE_OF:
        return [load, (_HAS_BITS, 1, 0, values[0])]
    if test.must is Must.HAVE_ALL_OF:
        return [load, (_AND, 0, 0, values[0]), (_EQUAL, 0, 1, values[0])]
    others = [(_EQUAL, len(values) - 1 - index, 0, value) for index, value in enumerate(values[:-1])]
    return [load, *others, (_EQUAL, 0, 1, values[-1])]
