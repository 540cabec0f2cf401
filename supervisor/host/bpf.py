"""BPF from Python: maps, programs on tracepoints, links, and their pins in a bpffs. bpf(2), linux/bpf.h.

Some facts, and what they mean here:
* The verifier checks a program when it is loaded, so a wrong one is refused and harms nothing. LoadError has its log.
* A tracepoint program runs for every process of the host, on all processors, whatever processor its perf event names.
* Maps, programs and links live as long as a descriptor or a pin. A pin is a file of a bpffs (/sys/fs/bpf).
* tracefs has the number of a tracepoint. It need not be mounted (linux.own_mount).
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterator
from contextlib import suppress

from nsbridge.agents import linux
from nsbridge.config.descriptors import closing

HASH, ARRAY = 1, 2  # BPF_MAP_TYPE_…
MMAPABLE = 1 << 10  # BPF_F_MMAPABLE
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY = 0, 1, 2, 3, 4
_PROG_LOAD, _OBJ_PIN, _OBJ_GET, _OBJ_INFO, _MAP_FREEZE, _LINK_CREATE = 5, 6, 7, 15, 22, 28
_TRACEPOINT, _PERF_EVENT_LINK = 5, 41  # BPF_PROG_TYPE_TRACEPOINT, BPF_PERF_EVENT
_PERF_TYPE_TRACEPOINT, _PERF_ATTR_SIZE, _PERF_CLOEXEC = 2, 128, 8
_RECURSION_MISSES_AT, _INFO_SIZE = 208, 224  # in struct bpf_prog_info
_NUMBERS = {"x86_64": (321, 298), "aarch64": (280, 241)}  # bpf, perf_event_open
_LOG_SIZE = 64 << 10


class LoadError(OSError):
    """The kernel's verifier refused a program; the text has the end of its log."""


def _bpf(command: int, attributes: bytes | bytearray) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(38, f"no BPF on {platform.machine()}: its system call's number is not known here")
    return linux.syscall("bpf", number[0], command, bytearray(attributes), len(attributes))


def create_map(kind: int, key: int, value: int, entries: int, flags: int = 0) -> int:
    """Make a map; sizes in bytes. Return its descriptor."""
    return _bpf(_MAP_CREATE, struct.pack("<6I", kind, key, value, entries, flags, 0).ljust(72, b"\0"))


def _on_element(command: int, fd: int, key: bytes, value: bytearray | None = None) -> None:
    keys = bytearray(key)
    at = linux.address_of(value) if value is not None else 0
    _bpf(command, struct.pack("<IIQQQ", fd, 0, linux.address_of(keys), at, 0))


def update(fd: int, key: bytes, value: bytes) -> None:
    """Set an element of a map."""
    _on_element(_MAP_UPDATE, fd, key, bytearray(value))


def look_up(fd: int, key: bytes, size: int) -> bytes | None:
    """Return an element's value of `size` bytes; None if there is none."""
    value = bytearray(size)
    try:
        _on_element(_MAP_LOOKUP, fd, key, value)
    except FileNotFoundError:
        return None
    return bytes(value)


def delete(fd: int, key: bytes) -> None:
    """Remove an element; nothing happens if there is none."""
    with suppress(FileNotFoundError):
        _on_element(_MAP_DELETE, fd, key)


def keys(fd: int, size: int) -> Iterator[bytes]:
    """Yield all keys of a hash map that does not change meanwhile."""
    key: bytes | None = None
    while True:
        following = bytearray(size)
        before = bytearray(key) if key is not None else None
        at = linux.address_of(before) if before is not None else 0
        try:
            _bpf(_MAP_NEXT_KEY, struct.pack("<IIQQQ", fd, 0, at, linux.address_of(following), 0))
        except FileNotFoundError:
            return
        key = bytes(following)
        yield key


def freeze(fd: int) -> None:
    """Forbid every process to write into a map for good; programs still may."""
    _bpf(_MAP_FREEZE, struct.pack("<I", fd).ljust(32, b"\0"))


def load(code: bytes) -> int:
    """Load a tracepoint program; return its descriptor. Raises LoadError, OSError."""
    instructions, licence, log = bytearray(code), bytearray(b"GPL\0"), bytearray(_LOG_SIZE)
    attributes = bytearray(148)
    addresses = linux.address_of(instructions), linux.address_of(licence)
    struct.pack_into("<IIQQ", attributes, 0, _TRACEPOINT, len(code) // 8, *addresses)
    try:
        return _bpf(_PROG_LOAD, attributes)
    except OSError:  # again, to learn why
        struct.pack_into("<IIQ", attributes, 24, 1, len(log), linux.address_of(log))
        try:
            return _bpf(_PROG_LOAD, attributes)
        except OSError as error:
            lines = log.rstrip(b"\0").decode(errors="replace").strip().splitlines()
            raise LoadError(
                error.errno, f"{error.strerror}; {'; '.join(lines[-3:])}" if lines else error.strerror
            ) from None


def attach(program: int, tracepoint: int) -> int:
    """Run the program whenever the tracepoint of that number is passed, until its link goes. Return the link."""
    event = bytearray(_PERF_ATTR_SIZE)
    struct.pack_into("<IIQQ", event, 0, _PERF_TYPE_TRACEPOINT, _PERF_ATTR_SIZE, tracepoint, 1)
    number = _NUMBERS[platform.machine()][1]
    with closing(linux.syscall("perf_event_open", number, event, -1, 0, -1, _PERF_CLOEXEC)) as perf:
        return _bpf(_LINK_CREATE, struct.pack("<4I", program, perf, _PERF_EVENT_LINK, 0).ljust(48, b"\0"))


def pin(fd: int, path: str) -> None:
    """Keep a map, program or link beyond the life of this process, as a file of a bpffs."""
    name = bytearray(os.fsencode(path) + b"\0")
    _bpf(_OBJ_PIN, struct.pack("<QII", linux.address_of(name), fd, 0))


def pinned(path: str) -> int:
    """Open what was pinned there. Raises OSError."""
    name = bytearray(os.fsencode(path) + b"\0")
    return _bpf(_OBJ_GET, struct.pack("<QII", linux.address_of(name), 0, 0))


def skipped(program: int) -> int:
    """Return how often the kernel skipped the program, because another one ran on that processor."""
    info = bytearray(_INFO_SIZE)
    _bpf(_OBJ_INFO, struct.pack("<IIQ", program, len(info), linux.address_of(info)))
    return int.from_bytes(info[_RECURSION_MISSES_AT : _RECURSION_MISSES_AT + 8], "little")


def tracepoint(name: str) -> int:
    """Return the number of `group/name`. Raises OSError."""
    with (
        closing(linux.own_mount("tracefs")) as mount,
        closing(os.open(f"events/{name}/id", os.O_RDONLY | os.O_CLOEXEC, dir_fd=mount)) as fd,
    ):
        return int(os.read(fd, 32))
