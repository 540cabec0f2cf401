"""nsbridged that holds no socket for its agents: each gets a new one. For socket_losses.py, to compare."""

from __future__ import annotations

import sys

from nsbridge.supervisor.cli import nsbridged as daemon
from nsbridge.supervisor.lifecycle.heldsocket import HeldSocket


def main() -> int:
    """Be the daemon."""
    held = HeldSocket.fd

    def new(self: HeldSocket) -> int:
        self.drop()
        return held(self)

    HeldSocket.fd = new  # type: ignore[method-assign]
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
