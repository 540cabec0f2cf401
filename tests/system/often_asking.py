"""nsbridged that asks Docker for the names of served containers every second in place of every ten, for tests.

python -m tests.system.often_asking ARGUMENTS...
"""

from __future__ import annotations

import sys

from nsbridge.supervisor.cli import nsbridged
from nsbridge.supervisor.containers.engines.docker import Docker

if __name__ == "__main__":
    Docker.name_checked_every = 1.0
    sys.exit(nsbridged.main(sys.argv[1:]))
