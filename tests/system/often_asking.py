"""nsbridged that asks engines for the names of served containers every second, for tests that would wait for it.

python -m tests.system.often_asking ARGUMENTS...
"""

from __future__ import annotations

import sys

from nsbridge.supervisor.cli import nsbridged
from nsbridge.supervisor.containers.engines.docker import Docker
from nsbridge.supervisor.containers.labels import LabelledEngine
from tests.system.nsbridged import Nsbridged


class OftenAsking(Nsbridged):
    """This program as a daemon of a test."""

    program = ("tests.system.often_asking",)


if __name__ == "__main__":
    Docker.name_checked_every = LabelledEngine.name_checked_every = 1.0
    sys.exit(nsbridged.main(sys.argv[1:]))
