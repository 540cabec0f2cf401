"""Makes the demo's streams, in the few lines of NATS' protocol that this takes. usage: streams ADDRESS PORT NAME…

Each stream NAME takes the subject NAME. The server may need a moment until it answers.
"""

from __future__ import annotations

import json
import socket
import sys
import time

_LIMIT = 15.0  # seconds
_INBOX = b"_INBOX.demo"


def main() -> int:
    """Return 0 once all streams are there, 1 if the server does not come to that."""
    address, port, *names = sys.argv[1:]
    deadline, why = time.monotonic() + _LIMIT, ""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((address, int(port)), 2) as connection:
                why = _made(connection, names)
        except OSError as error:
            why = str(error)
        if not why:
            return 0
        time.sleep(0.1)  # it is starting
    sys.stderr.write(f"nats-server: {why}\n")
    return 1


def _made(connection: socket.socket, names: list[str]) -> str:
    """Make the streams; return why one could not be made, empty if all are there."""
    lines = connection.makefile("rb")
    lines.readline()  # INFO
    connection.sendall(b'CONNECT {"verbose":false}\r\nSUB %s 1\r\n' % _INBOX)
    for name in names:
        config = json.dumps({"name": name, "subjects": [name], "storage": "file", "discard": "new"}).encode()
        connection.sendall(
            b"PUB $JS.API.STREAM.CREATE.%s %s %d\r\n%s\r\n" % (name.encode(), _INBOX, len(config), config)
        )
        while not (line := lines.readline()).startswith(b"MSG "):
            if not line:
                return "the connection has ended"
        error = json.loads(lines.read(int(line.split()[-1]))).get("error")
        if error:
            return str(error.get("description"))
    return ""


if __name__ == "__main__":
    sys.exit(main())
