"""`nsbridge web` that waits 3 seconds in place of 10 for a request, and for a client to read: for tests.

python tests/hasty_web.py ARGUMENTS...
"""

from __future__ import annotations

import sys

from nsbridge.supervisor.cli import nsbridge
from nsbridge.supervisor.cli.web import guard

LIMIT = 3.0  # seconds

if __name__ == "__main__":
    guard.REQUEST = guard.STALL = LIMIT
    sys.exit(nsbridge.main(["web", *sys.argv[1:]]))
