"""Makes system containers for comings.py: machines of systemd-nspawn, and containers of LXD."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.system.engines import EngineContainer, Program
from tests.system.lxd_daemon import Lxd, LxdContainer
from tests.system.machines import MachineContainer, Machined
from tests.system.room import Room

SYSTEM = ("machine", "incus")


def maker(engine: str, room: Room, directory: Path, cleanup: ExitStack) -> Callable[[Program], EngineContainer]:
    """Return a function that makes containers of an engine of its own, which nsbridge finds."""
    base = directory / engine
    base.mkdir()
    made: Machined | Lxd = Machined(room, base) if engine == "machine" else Lxd(room, base)
    cleanup.callback(made.close)
    made.start()
    if isinstance(made, Machined):
        os.environ["NSBRIDGE_MACHINES"] = str(made.machines)
        return partial(MachineContainer, machined=made)
    made.import_image()
    os.environ["LXD_DIR"] = str(base)
    return partial(LxdContainer, lxd=made)
