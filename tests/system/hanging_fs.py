"""A file system in user space (fuse(4)) with one file in it, `.hidden`; when that was renamed, it hangs until SIGUSR1.

    python -m tests.system.hanging_fs FD deaf|mute|dirty

FD is /dev/fuse, opened and mounted by HangingFs. Ways to hang, which are not the same to the kernel:
* deaf: no further request is taken. A process that waits for one can be killed.
* mute: requests are taken, and no READ is answered. A process that waits for one cannot be killed: request_wait_answer
  in fs/fuse/dev.c waits for the answer of what the server has taken, whatever signal comes.
* dirty: the file can be mapped, and no WRITE is answered. Who takes a dirty shared mapping of it apart (munmap, another
  mmap over it, exit) waits in fuse_vma_close, with the mmap_lock held, and cannot be killed either.
It speaks just enough of linux/fuse.h for the file to be looked up, listed, renamed, read and removed.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import struct
import subprocess
import sys
from pathlib import Path

from nsbridge.agents import linux
from tests import child

BODY = b"from a file system that did not answer"
_IN = struct.Struct("<IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, extensions, padding
_OUT = struct.Struct("<IiQ")  # len, error, unique
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ROOT = 1
RENAME, READ, WRITE = 12, 15, 16
_NO_ANSWER = (2, 42, 36)  # FORGET, BATCH_FORGET, INTERRUPT


class Server:
    """Answers the kernel."""

    def __init__(self, device: int, how: str) -> None:
        self._device = device
        self._how = how
        self._files = {2: b".hidden"}
        self._held: list[tuple[int, bytes]] = []  # requests that wait for their answer, and what that will be
        self._hangs = True  # once the file is renamed
        self._open_flags = 0 if how == "dirty" else 1  # FOPEN_DIRECT_IO: nothing is cached

    def serve(self) -> None:
        """Serve until it is unmounted."""
        signal.signal(signal.SIGUSR1, lambda _signum, _frame: self._answer_all())
        while True:
            try:
                request = os.read(self._device, 1 << 20)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                return  # ENODEV
            self._answer(request)

    def _answer_all(self) -> None:
        self._hangs = False
        for unique, answer in self._held:
            self._reply(unique, answer)

    def _answer(self, request: bytes) -> None:
        _, opcode, unique, node, *_ = _IN.unpack_from(request)
        body = request[_IN.size :]
        if opcode in _NO_ANSWER:
            return
        if opcode == (WRITE if self._how == "dirty" else READ) and self._hangs:
            self._held.append((unique, BODY if opcode == READ else body[16:20] + bytes(4)))  # all of it was written
            return
        try:
            self._reply(unique, self._do(opcode, node, body))
        except OSError as error:
            self._reply(unique, b"", -(error.errno or errno.EIO))
        while opcode == RENAME and self._how == "deaf" and self._hangs:
            signal.sigtimedwait((), 0.05)  # SIGUSR1 has its handler

    def _do(self, opcode: int, node: int, body: bytes) -> bytes:  # noqa: C901, PLR0911  (a case a request)
        match opcode:
            case 26:  # INIT: version 7.31, no flags
                readahead = struct.unpack_from("<8xI", body)[0]
                return struct.pack("<IIIIHHIIHHI7I", 7, 31, readahead, 0, 16, 16, 1 << 16, 1, 1, 0, 0, *[0] * 7)
            case 1:  # LOOKUP
                return self._entry(body.rstrip(b"\0"))
            case 3 | 4:  # GETATTR, SETATTR
                return struct.pack("<QII", 1, 0, 0) + self._attributes(node)
            case 14 | 27:  # OPEN, OPENDIR
                return struct.pack("<QII", node, self._open_flags, 0)
            case 15:  # READ
                offset, size = struct.unpack_from("<8xQI", body)
                return BODY[offset : offset + size]
            case 16:  # WRITE: all of it
                return body[16:20] + bytes(4)
            case 28:  # READDIR
                return self._listing(*struct.unpack_from("<8xQI", body))
            case 10:  # UNLINK
                name = body.rstrip(b"\0")
                self._files = {number: other for number, other in self._files.items() if other != name}
                return b""
            case 12:  # RENAME: the new directory, the old name, the new one
                old, new, _ = body[8:].split(b"\0")
                self._files = {number: new if other == old else other for number, other in self._files.items()}
                return b""
            case 17:  # STATFS
                return struct.pack("<QQQQQIIII24x", 0, 0, 0, 0, 0, 512, 255, 512, 0)
            case 18 | 25 | 29:  # RELEASE, FLUSH, RELEASEDIR
                return b""
        raise OSError(errno.ENOSYS, "not here")

    def _entry(self, name: bytes) -> bytes:
        for number, other in self._files.items():
            if other == name:
                return struct.pack("<QQQQII", number, 0, 1, 1, 0, 0) + self._attributes(number)
        raise OSError(errno.ENOENT, "no such file")

    def _attributes(self, number: int) -> bytes:
        if number != _ROOT and number not in self._files:
            raise OSError(errno.ENOENT, "no such file")
        mode, size = (stat.S_IFDIR | 0o755, 0) if number == _ROOT else (stat.S_IFREG | 0o644, len(BODY))
        return _ATTR.pack(number, size, 1, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _listing(self, offset: int, size: int) -> bytes:
        entries = [(_ROOT, b".", 4), (_ROOT, b"..", 4), *((number, name, 8) for number, name in self._files.items())]
        listing = b""
        for place, (number, name, kind) in list(enumerate(entries, 1))[offset:]:
            entry = struct.pack("<QQII", number, place, len(name), kind) + name
            entry += bytes(-len(entry) % 8)
            if len(listing) + len(entry) > size:
                break
            listing += entry
        return listing

    def _reply(self, unique: int, body: bytes, error: int = 0) -> None:
        try:
            os.write(self._device, _OUT.pack(_OUT.size + len(body), error, unique) + body)
        except OSError as failure:
            if failure.errno not in (errno.ENOENT, errno.ENODEV):  # who asked was killed, or it is unmounted
                raise


class HangingFs:
    """Mounted at `where` in the mount namespace of process `init`; a context manager."""

    def __init__(self, init: int, where: str, how: str) -> None:
        self._init = init
        self._how = how
        self._where = where
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> HangingFs:
        assert child.exit_code(self._mount) == 0
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.system.hanging_fs", str(self._device), self._how],
            cwd=Path(__file__).parents[2],
            pass_fds=[self._device],
        )
        os.close(self._device)
        return self

    def _mount(self) -> int:
        namespace = os.open(f"/proc/{self._init}/ns/mnt", os.O_RDONLY)
        linux.setns(namespace, linux.CLONE_NEWNS)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        linux.mount("hanging", self._where, "fuse", 0, options)
        return 0

    def __exit__(self, *_exc: object) -> None:
        self.server.kill()
        self.server.wait()

    def hang(self, name: str) -> None:
        """Rename the file, which is the last that it does."""
        directory = Path(f"/proc/{self._init}/root{self._where}")
        (directory / ".hidden").rename(directory / name)

    def answer_all(self) -> None:
        """Answer what was asked, and from now on at once."""
        self.server.send_signal(signal.SIGUSR1)


if __name__ == "__main__":
    Server(int(sys.argv[1]), sys.argv[2]).serve()
