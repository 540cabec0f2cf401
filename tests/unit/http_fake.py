"""A fake engine for tests: HTTP on a real Unix socket, with the answers that a test gives by target."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

Reply = bytes | Callable[[socket.socket, bytes], None]  # a body, or what is done with the caller and its request


class FakeEngine:
    """Listens at `path`; a target that is not in `replies` gives 404. `asked` has the targets, decoded.

    With `uid`, which root can choose, it listens as that user.
    """

    def __init__(self, path: Path, replies: Mapping[str, Reply], uid: int | None = None) -> None:
        self.replies = dict(replies)
        self.asked: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        own = os.geteuid()
        os.seteuid(own if uid is None else uid)
        self._listener.listen(50)  # the kernel notes the user now; unix(7)
        os.seteuid(own)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def reply_to(self, target: str) -> Reply | None:
        """Return the reply to a target; None for 404."""
        return self.replies.get(target)

    def close(self) -> None:
        """End; callers that are being served end first."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                caller = self._listener.accept()[0]
                self._threads.append(threading.Thread(target=self._serve, args=[caller]))
                self._threads[-1].start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, suppress(OSError):
            while request := caller.recv(65536):
                target = unquote(request.split(b" ")[1].decode())
                self.asked.append(target)
                reply = self.reply_to(target)
                if callable(reply):
                    reply(caller, request)
                    return
                status, body = ("404 Not Found", b"{}") if reply is None else ("200 OK", reply)
                caller.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
