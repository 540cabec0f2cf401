"""Dead letters as the supervisor handles them for a person: listed, read, given back to their flow's source, removed.

agents/dead/letters.py writes them into STATE_DIR/dead/ROUTE/AGENT, which belongs to the agent's user. The agent may be
compromised, so the content is hostile. So everything goes by the directory's descriptor and one name, follows no
link, opens nothing that blocks, reads bounded amounts of a bounded number of files, and takes a note only if it fits.
Giving one back is one rename (then see agents/dead/retries.py), so no kill leaves it in both places or in neither.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nsbridge.agents import statefiles
from nsbridge.agents.dead import quota
from nsbridge.agents.dead.quota import FileSystem, Quota
from nsbridge.agents.statefiles import EPOCH, SEQ, dead_letters
from nsbridge.config.descriptors import closing
from nsbridge.config.errors import NsbridgeError
from nsbridge.config.schema import DeadConfig

MAX_SEEN = 5000  # names of a directory that are looked at
MAX_COUNTED = 1000  # letters of an agent, of two files each: `status` is asked often
MAX_NOTE = 4 << 10  # bytes of a note
_MAX_TEXT = 1000  # characters of a reason that are kept
_NOTE = re.compile(rf"({EPOCH})-({SEQ})\.json")
_TYPES = range(1 << 63)  # that a message may have: 0 out of a file, others out of a queue


@dataclass(frozen=True, slots=True)
class Letter:
    """One message that could not be delivered. `type` is None if its note is invalid."""

    agent: str  # ROUTE:AGENT, the sink
    epoch: int
    seq: int
    bytes: int
    type: int | None
    time: float | None  # seconds since 1970
    where: str
    why: str

    @property
    def stem(self) -> str:
        """Return the stem of its two files' names."""
        return statefiles.stem(self.epoch, self.seq)

    @property
    def id(self) -> str:
        """Return the name that people use."""
        return f"{self.agent}/{self.epoch:016x}-{self.seq}"


@dataclass(frozen=True, slots=True)
class Letters:
    """Those of one agent, in the order in which they came, and whether there are more than could be looked at."""

    letters: list[Letter]
    more: bool


def letters_of(state_dir: str, agent: str) -> Letters:
    """Return the letters that are there now, each with its note. Raises NsbridgeError. Slow: only a child does this."""
    stems, more = stems_of(state_dir, agent)
    found = (letter_of(state_dir, agent, stem) for stem in stems)
    return Letters([letter for letter in found if letter is not None], more)


def stems_of(state_dir: str, agent: str) -> tuple[list[str], bool]:
    """Return EPOCH-SEQ of the letters that are there now, in order, and True if there are more. Raises NsbridgeError.

    Only names are read, MAX_SEEN of them: some 2 ms.
    """
    try:
        with _opened(dead_letters(state_dir, agent)) as box, os.scandir(box) as entries:
            names = [entry.name for entry in itertools.islice(entries, MAX_SEEN + 1)]
    except FileNotFoundError:
        return [], False
    except OSError as error:
        raise NsbridgeError(f"dead letters of {agent}: {error.strerror}") from None
    return sorted(name[: -len(".json")] for name in names if _NOTE.fullmatch(name)), len(names) > MAX_SEEN


def letter_of(state_dir: str, agent: str, stem: str) -> Letter | None:
    """Read one letter's note; None if it is none, or has just gone. NsbridgeError if it cannot be read."""
    try:
        with _opened(dead_letters(state_dir, agent)) as box:
            return _letter(box, agent, f"{stem}.json")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NsbridgeError(f"dead letters of {agent}: {error.strerror}") from None


def count(state_dir: str, agent: str) -> int | None:
    """Return the number of letters now, up to MAX_COUNTED; None if it cannot be read. About 15 us if there are none."""
    try:
        with _opened(dead_letters(state_dir, agent)) as box, os.scandir(box) as entries:
            names = (entry.name for entry in itertools.islice(entries, 2 * MAX_COUNTED + 2))
            return min(MAX_COUNTED, sum(name.endswith(".json") for name in names))
    except FileNotFoundError:
        return 0
    except OSError:
        return None


def path_of(state_dir: str, letter: Letter) -> str:
    """Return the path of the file with its content, as it came."""
    return str(dead_letters(state_dir, letter.agent) / f"{letter.stem}.body")


def body_of(state_dir: str, letter: Letter, most: int) -> bytes:
    """Return its first `most` bytes. Raises NsbridgeError if it is gone, or not a regular file.

    Only a child calls this: every agent that is forked later inherits the supervisor's memory.
    """
    with _box_of(state_dir, letter) as box, _body(box, letter) as fd:
        return os.read(fd, most)


def drop(state_dir: str, letter: Letter) -> None:
    """Remove it for good: first the note, which makes it one. NsbridgeError."""
    with _box_of(state_dir, letter) as box:
        _discard(box, f"{letter.stem}.json")
        with contextlib.suppress(FileNotFoundError):  # its agent removes a body that has no note
            _discard(box, f"{letter.stem}.body")


def give_back(state_dir: str, letter: Letter, source: str, longest: int, limits: DeadConfig) -> None:
    """Let `source` take it again, if it has at most `longest` bytes. Raises NsbridgeError if that is not possible.

    Letters that wait there count against the same limits: they stay on the host, while the sink may write others.
    """
    if letter.type is None:
        raise NsbridgeError(f"{letter.id}: {letter.why}; it can only be dropped")
    with _box_of(state_dir, letter) as box, _body(box, letter) as fd, _retry_box(state_dir, source) as target:
        status = os.fstat(fd)
        if status.st_nlink != 1:  # what is made readable below must not be a file of a different user
            raise NsbridgeError(f"{letter.id}: its file has {status.st_nlink} names; it can only be dropped")
        if status.st_size > longest:
            raise NsbridgeError(
                f"{letter.id}: {status.st_size} bytes are more than the journal of {source} holds ({longest}); "
                "it grows with the route's window"
            )
        if full := _is_full(target, status.st_size, limits):
            raise NsbridgeError(f"{letter.id}: {source} has too many letters to take again ({full}); retry it later")
        os.fchown(fd, os.geteuid(), os.getegid())
        os.fchmod(fd, 0o644)  # for the user of the source's agent; no other user can enter the directory
        name = f"{letter.stem}.{letter.type}"
        os.rename(f"{letter.stem}.body", name, src_dir_fd=box, dst_dir_fd=target)
        if not os.path.samestat(status, os.stat(name, dir_fd=target, follow_symlinks=False)):
            _discard(target, name)
            raise NsbridgeError(f"{letter.id}: its file was replaced meanwhile")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{letter.stem}.json", dir_fd=box)


def _is_full(box: int, size: int, limits: DeadConfig) -> str:
    """Return what is full in an agent's directory of letters to take again; empty if one more fits."""
    waiting = Quota(limits)
    with os.scandir(box) as entries:
        for entry in itertools.islice(entries, limits.max_letters):
            with contextlib.suppress(OSError):
                waiting.add(quota.KeptLetter(entry.name, entry.stat(follow_symlinks=False).st_size, 0.0))
    return waiting.admit(size, FileSystem(free=size, size=0)).full  # it is on that file system already


def given_back(state_dir: str, source: str) -> int:
    """Return how many wait for `source` to take them again."""
    try:
        with _opened(statefiles.dead_retries(state_dir, source)) as box, os.scandir(box) as entries:
            return sum(1 for _ in itertools.islice(entries, MAX_SEEN))
    except OSError:
        return 0


def _opened(path: Path) -> contextlib.AbstractContextManager[int]:
    return closing(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))


@contextlib.contextmanager
def _box_of(state_dir: str, letter: Letter) -> Iterator[int]:
    """Yield the directory's descriptor; an error in it becomes a message of one line."""
    try:
        with _opened(dead_letters(state_dir, letter.agent)) as box:
            yield box
    except FileNotFoundError:
        raise NsbridgeError(f"{letter.id}: it has just gone") from None
    except OSError as error:
        raise NsbridgeError(f"{letter.id}: {error.strerror}") from None


@contextlib.contextmanager
def _retry_box(state_dir: str, source: str) -> Iterator[int]:
    path = statefiles.dead_retries(state_dir, source)
    for directory in (path.parent, path):
        directory.mkdir(mode=0o700, exist_ok=True)
    with _opened(path) as box:
        yield box


@contextlib.contextmanager
def _body(box: int, letter: Letter) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    with closing(os.open(f"{letter.stem}.body", flags, dir_fd=box)) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NsbridgeError(f"{letter.id}: its body is no regular file; it can only be dropped")
        yield fd


def _discard(box: int, name: str) -> None:
    """Remove the file or directory, whatever it is. Raise OSError."""
    try:
        os.unlink(name, dir_fd=box)
    except IsADirectoryError:
        os.rmdir(name, dir_fd=box)


def _letter(box: int, agent: str, name: str) -> Letter | None:
    """Return the letter whose note has this name; None if it is no note, or its body has gone."""
    found = _NOTE.fullmatch(name)
    if found is None:
        return None
    try:
        body = os.stat(f"{name[:-5]}.body", dir_fd=box, follow_symlinks=False)
    except OSError:
        return None
    epoch, seq = int(found[1], 16), int(found[2])
    note = _note(box, name)
    fits = note.get("epoch") == epoch and note.get("seq") == seq
    mtype, time = note.get("type"), note.get("time")
    if not fits or type(mtype) is not int or mtype not in _TYPES:
        return Letter(agent, epoch, seq, body.st_size, None, None, "", "its note is damaged")
    when = float(time) if isinstance(time, int | float) and 0 <= time < 1 << 37 else None
    where, why = (str(note.get(key))[:_MAX_TEXT] for key in ("where", "why"))
    return Letter(agent, epoch, seq, body.st_size, mtype, when, where, why)


def _note(box: int, name: str) -> dict[str, object]:
    """Return the note's content; empty if it is none."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=box)
    except OSError:
        return {}
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return {}
        fields = json.loads(os.read(fd, MAX_NOTE))
    except (OSError, ValueError, RecursionError):
        return {}
    finally:
        os.close(fd)
    return fields if isinstance(fields, dict) else {}
