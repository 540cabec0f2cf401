"""A host of the demo: mount and network namespaces of its own, until its standard input ends.

usage: host

It prints `Ready` once it is there. When the process that started it dies, it dies too.
"""

from __future__ import annotations

import signal
import sys

from nsbridge.agents import linux
from nsbridge.config.errors import EXIT_FAILED, EXIT_NOT_PERMITTED, EXIT_OK


def main() -> int:
    """Return 77 if this process may not make namespaces."""
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET)
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\n")
        return EXIT_NOT_PERMITTED if isinstance(error, PermissionError) else EXIT_FAILED
    sys.stdout.write("Ready\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
