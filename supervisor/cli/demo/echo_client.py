"""An echo client that speaks files only; it does not use nsbridge. usage: echo_client.py FILE_OUT FILE_IN

Each line of its standard input is written to FILE_OUT, whole; when FILE_IN has been written, `Recv TEXT` is printed.
"""

import os
import sys
from pathlib import Path

from inotify_simple import INotify, flags

LONGEST = 8000  # bytes: it must fit into a message of the server's queue


def main() -> None:
    """Serve standard input until its end."""
    file_out, file_in = Path(sys.argv[1]), Path(sys.argv[2])
    os.close(os.open(file_in, os.O_CREAT | os.O_RDONLY, 0o660))  # there must be something to watch
    with INotify() as written:
        written.add_watch(file_in, flags.CLOSE_WRITE)
        write_line(b"Ready")
        for line in sys.stdin.buffer:
            message = line.removesuffix(b"\n")
            if len(message) > LONGEST:
                write_line(b"echo_client: the message has %d bytes, at most %d can be sent" % (len(message), LONGEST))
                continue
            written.read(timeout=0)  # what was written before the question is no answer to it
            file_out.write_bytes(message)
            written.read()
            write_line(b"Recv " + file_in.read_bytes())


def write_line(line: bytes) -> None:
    """Print `line`, at once."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
