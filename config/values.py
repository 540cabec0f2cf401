"""The readers of single values: each takes what TOML gave and returns what schema.py holds, or raises InvalidValue.

Nothing is coerced: "5" is not a number, true is not 1, 5.0 is not 5. A reader looks at its own value and at nothing
else; what several keys must agree on is in check.py.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from nsbridge.config import containerkind
from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.filenames import LONGEST_NAME
from nsbridge.config.problems import InvalidValue, nearest, quoted, shown
from nsbridge.config.schema import MAX_MESSAGE, Container, User

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)
Reader = Callable[[object], T]

I64_MAX = (1 << 63) - 1
KEY_MAX = (1 << 32) - 1  # key_t has 32 bits
ID_MAX = (1 << 32) - 2  # the last one is (uid_t) -1, "no id"
PERMISSIONS = 0o777
SUN_PATH = 107  # bytes of a socket's path: unix(7), 108 with the NUL at its end
_LONGEST_SUFFIX = 64  # bytes
_LONGEST_POSIX = 16 << 20  # bytes of a message: HARD_MSGSIZEMAX of the kernel
_C_INT_MAX = (1 << 31) - 1
_LONGEST_PATH = 4095  # bytes: PATH_MAX without its NUL

_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,9}) ?([A-Za-z]*)")
_SIZE = re.compile(r"([0-9]{1,18}) ?([A-Za-z]*)")
_MODE = re.compile(r"[0-7]{3,4}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?")
OWNER = "owner"  # of `user`: the endpoint's owner, also where that changes
_USER = re.compile(r"([0-9]{1,10}):([0-9]{1,10})")


def text(value: object) -> str:
    """Read any string."""
    if not isinstance(value, str):
        raise InvalidValue(f"must be a string, got {shown(value)}", "put it in quotes")
    return value


def boolean(value: object) -> bool:
    """True or false, and nothing that only looks like it."""
    if not isinstance(value, bool):
        raise InvalidValue(f"must be true or false, got {shown(value)}", "write true or false, without quotes")
    return value


def whole_number(value: object) -> int:
    """Read any TOML integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidValue(f"must be an integer, got {shown(value)}", "write digits, without quotes")
    return value


def integer(low: int, high: int) -> Reader[int]:
    """Return a reader of integers from `low` to `high`, both included."""

    def read(value: object) -> int:
        number = whole_number(value)
        if not low <= number <= high:
            raise InvalidValue(f"is out of range, got {shown(value)}", f"write an integer from {low} to {high}")
        return number

    return read


def choice(*known: str) -> Reader[str]:
    """Return a reader of one of a few words."""

    def read(value: object) -> str:
        word = text(value)
        if word not in known:
            meant = nearest(word, known)
            guess = f"did you mean {quoted(meant)}? " if meant else ""
            raise InvalidValue(
                f"is not known, got {shown(value)}", f"{guess}known here: {', '.join(map(quoted, known))}"
            )
        return word

    return read


def member(kind: type[E]) -> Reader[E]:
    """Return a reader of the values of an enumeration."""
    words = choice(*kind)
    return lambda value: kind(words(value))


def listed(reader: Reader[T]) -> Reader[tuple[T, ...]]:
    """Return a reader of arrays of what `reader` reads."""

    def read(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise InvalidValue(f"must be an array, got {shown(value)}", "put it in brackets, like [value]")
        return tuple(map(reader, value))

    return read


def size(value: object) -> int:
    """Read a number of bytes, at least 1: an integer, or a string with a unit (`"50MB"` 10^6, `"4MiB"` 2^20)."""
    fix = 'write bytes as an integer, or a string with a unit, like "50MB" (10^6) or "4MiB" (2^20)'
    if isinstance(value, str):
        parts = _SIZE.fullmatch(value)
        if parts is None or parts[2] not in _UNITS:
            raise InvalidValue(f"is not a size, got {shown(value)}", f"{fix}; units: {', '.join(_UNITS)}")
        number = int(parts[1]) * _UNITS[parts[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise InvalidValue(f"must be a size, got {shown(value)}", fix)
    if not 1 <= number <= I64_MAX:
        raise InvalidValue(f"is out of range, got {shown(value)}", "a size is at least 1 byte and below 2^63")
    return number


def size_up_to(most: int, fix: str) -> Reader[int]:
    """Return a reader of sizes of at most so many bytes."""

    def read(value: object) -> int:
        number = size(value)
        if number > most:
            raise InvalidValue(f"is out of range, got {shown(value)}", fix)
        return number

    return read


queue_size = size_up_to(_C_INT_MAX, f"a queue has at most {_C_INT_MAX} bytes")  # kernel.msgmnb, its limit, is a C int
message_size = size_up_to(MAX_MESSAGE, f"a message has at most {MAX_MESSAGE >> 20} MiB")
posix_message_size = size_up_to(_LONGEST_POSIX, f"the kernel allows at most {_LONGEST_POSIX >> 20} MiB")


def duration(low: str, high: str) -> Reader[float]:
    """Return a reader of times in seconds from `low` to `high`, both included: an integer, or digits and a unit
    (`"15s"`).
    """
    least, most = (_seconds(limit) for limit in (low, high))
    fix = 'write seconds as an integer, or a string with a unit, like "15s" or "500ms"'

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise InvalidValue(f"must be a time, got {shown(value)}", fix)
        seconds = _seconds(value) if isinstance(value, str) else float(value)
        if seconds is None:
            raise InvalidValue(f"is not a time, got {shown(value)}", f"{fix}; units: {', '.join(_SECONDS)}")
        if least is not None and most is not None and not least <= seconds <= most:
            raise InvalidValue(
                f"is out of range, got {shown(value)}", f"write a time from {quoted(low)} to {quoted(high)}"
            )
        return seconds

    return read


def _seconds(value: str) -> float | None:
    parts = _DURATION.fullmatch(value)
    return int(parts[1]) * _SECONDS[parts[2]] if parts and parts[2] in _SECONDS else None


def mode(value: object) -> int:
    """Permission bits from an octal string: `"0660"` or `"660"`."""
    if isinstance(value, int) and not isinstance(value, bool):
        fix = 'TOML reads numbers as decimal, so put the mode in quotes, like "0660"'
        raise InvalidValue(f"must be an octal string, got the number {shown(value)}", fix)
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise InvalidValue(
            f"must be an octal string, got {shown(value)}", 'write three octal digits after a 0, like "0660"'
        )
    bits = int(value, 8)
    if bits > PERMISSIONS:
        raise InvalidValue(f"has more than permission bits, got {shown(value)}", 'write at most "0777"')
    return bits


def path_like(example: str) -> Reader[str]:
    """Return a reader of absolute paths without `..`; the agent that opens one refuses symbolic links."""

    def read(value: object) -> str:
        name = text(value)
        if not name.startswith("/"):
            fix = f"write it from the root, like {quoted(example)}"
            raise InvalidValue(f"must be an absolute path, got {shown(value)}", fix)
        if "\0" in name:
            raise InvalidValue(f"has a NUL in it, got {shown(value)}", "no file can have such a name: take the NUL out")
        if ".." in name.split("/"):
            fix = f"write where it leads, perhaps {quoted(posixpath.normpath(name))}"
            raise InvalidValue(f'must not go up by "..", got {shown(value)}', fix)
        if _bytes(name) > _LONGEST_PATH:
            raise InvalidValue(f"is longer than Linux takes, got {shown(value)}", f"use at most {_LONGEST_PATH} bytes")
        return name

    return read


path = path_like("/var/spool/orders/out")


_control_path = path_like("/run/nsbridge/control.sock")


def socket_path(value: object) -> str:
    """Read an absolute path that fits into a socket's address."""
    name = _control_path(value)
    length = _bytes(name)
    if length > SUN_PATH:
        fix = f"a socket's path has at most {SUN_PATH} bytes: choose a shorter directory"
        raise InvalidValue(f"is {length} bytes long, got {shown(value)}", fix)
    if posixpath.basename(name) in ("", "."):
        raise InvalidValue(f"is the path of a directory, got {shown(value)}", "add the name of the socket's file")
    return name


def name_pattern(value: object) -> str:
    """Read a shell pattern for a file name without a directory."""
    pattern = text(value)
    if not pattern or "/" in pattern or "\0" in pattern:
        raise InvalidValue(
            f"is not a pattern for a file name, got {shown(value)}", 'write it like "*.tmp", without a /'
        )
    if _bytes(pattern) > LONGEST_NAME:
        raise InvalidValue(f"is longer than a file name, got {shown(value)}", f"use at most {LONGEST_NAME} bytes")
    return pattern


def name_patterns(value: object) -> tuple[str, ...]:
    """Read at least one shell pattern for file names."""
    patterns = listed(name_pattern)(value)
    if not patterns:
        raise InvalidValue("is empty, so no file would be taken", 'write at least one pattern, like ["*.xml"]')
    return patterns


def name_suffix(value: object) -> str:
    """Read what is put behind the names of files: empty, or beginning with a dot."""
    suffix = text(value)
    if suffix and (suffix[0] != "." or len(suffix) == 1 or "/" in suffix or "\0" in suffix):
        raise InvalidValue(f"is not a suffix, got {shown(value)}", 'write it like ".xml", beginning with a dot')
    if _bytes(suffix) > _LONGEST_SUFFIX:
        raise InvalidValue(f"is too long, got {shown(value)}", f"use at most {_LONGEST_SUFFIX} bytes")
    return suffix


def queue_key(value: object) -> int:
    """Read a SysV key given as a number, 1 to 2^32-1 (the other way, ftok's, is a table)."""
    number = whole_number(value)
    if number == 0:
        raise InvalidValue(
            "is 0, which is IPC_PRIVATE: it makes a new queue at each use, and none can be found by it",
            "write the key that the container's program uses, like 0x4d2",
        )
    if number < 0:
        fix = f"write the same 32 bits as {number & KEY_MAX:#x}" if number >= -(1 << 31) else "keys have 32 bits"
        raise InvalidValue(f"must not be negative, got {shown(value)}", fix)
    if number > KEY_MAX:
        raise InvalidValue(f"is too large, got {shown(value)}", "a key has 32 bits: at most 0xffffffff")
    return number


def posix_queue_name(value: object) -> str:
    """Read the name of a POSIX message queue: mq_overview(7)."""
    name = text(value)
    fix = 'write a slash and a name without another one, like "/orders"'
    if not name.startswith("/") or "/" in name[1:] or "\0" in name or name in ("/", "/.", "/.."):
        raise InvalidValue(f"is not the name of a POSIX queue, got {shown(value)}", fix)
    if _bytes(name) > LONGEST_NAME + 1:
        raise InvalidValue(f"is too long, got {shown(value)}", f"use at most {LONGEST_NAME} bytes after the slash")
    return name


def route_name(value: object) -> str:
    """Read the name of a route: `all` is taken, by nsbridgectl."""
    name = agent_name(value)
    if name == "all":
        raise InvalidValue('must not be named "all"', "nsbridgectl calls every route that: choose another name")
    return name


def agent_name(value: object) -> str:
    """Read a name as status and logs show it."""
    name = text(value)
    if not _NAME.fullmatch(name):
        fix = "use at most 64 letters, digits, -, _ and ., not beginning with . or -"
        raise InvalidValue(f"is not a name that can be used, got {shown(value)}", fix)
    return name


def group(value: object) -> str:
    """Read the name of a group, or its number in digits; only the lookup finds out if the group exists."""
    name = text(value)
    if not _GROUP.fullmatch(name):
        raise InvalidValue(f"is no group name, got {shown(value)}", "write it as in /etc/group")
    return name


def user(value: object) -> User | str:
    """Read `"uid:gid"` in digits, or OWNER. Names would have to be looked up inside the container: not possible."""
    if value == OWNER:
        return OWNER
    parts = _USER.fullmatch(text(value))
    if parts is None:
        fix = 'write uid and gid in digits, like "1000:1000", or "owner" for the owner of the endpoint'
        raise InvalidValue(f"must be two numbers, got {shown(value)}", fix)
    if max(int(parts[1]), int(parts[2])) > ID_MAX:
        raise InvalidValue(f"is out of range, got {shown(value)}", f"an id is at most {ID_MAX}")
    return User(uid=int(parts[1]), gid=int(parts[2]))


def container(value: object) -> Container:
    """Read `KIND:NAME`, or the word of a kind that has no names (`host`)."""
    word, colon, name = text(value).partition(":")
    kinds = containerkind.known()
    kind = kinds.get(word)
    listed_kinds = ", ".join(kinds)
    if kind is not None and kind.is_host:
        if colon:
            raise InvalidValue(f"has more than it can, got {shown(value)}", kind.fix)
        return Container(kind, "")
    if not colon:
        fix = f'write KIND:NAME, like "docker:web"; kinds: {listed_kinds}'
        raise InvalidValue(f"does not say which kind of container it is, got {shown(value)}", fix)
    if kind is None:
        meant = nearest(word, tuple(kinds))
        guess = f"did you mean {quoted(f'{meant}:{name}')}? " if meant else ""
        raise InvalidValue(f"is of no known kind, got {shown(value)}", f"{guess}kinds: {listed_kinds}")
    if kind.pattern is None:
        return Container(kind, _path_of(kind, name))
    if not kind.pattern.fullmatch(name):
        raise InvalidValue(f"is no {kind} name, got {shown(value)}", kind.fix)
    return Container(kind, name)


def _bytes(name: str) -> int:
    return len(name.encode("utf-8", "surrogatepass"))


def _path_of(kind: ContainerKind, name: str) -> str:
    try:
        return path(name)
    except InvalidValue as refused:
        raise InvalidValue(f"what follows {kind}: {refused.what}", kind.fix) from None
