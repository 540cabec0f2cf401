"""Finds containers of crun, `crun:NAME`, by the state files that it keeps."""

from __future__ import annotations

import os
import re

from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers.statefiles import CRUN_STATE, StateFileRuntime

# crun, src/libcrun/status.c: validate_id refuses a slash. No name begins with -: a command would see an option in it.
KIND = ContainerKind(
    "crun",
    re.compile(r"(?!\.{1,2}$)[^\0/-][^\0/]{0,254}"),
    "a crun name has no / in it and does not begin with -",
    is_unique=True,
)


class Crun(StateFileRuntime):
    """One container has one name."""

    kind = KIND
    state = CRUN_STATE

    def roots(self) -> tuple[str, ...]:
        """Return where crun looks: XDG_RUNTIME_DIR also as root, then where a crun without that variable looks."""
        forced = os.environ.get("NSBRIDGE_CRUN_ROOT")
        if forced:
            return (forced,)
        user_dir = os.environ.get("XDG_RUNTIME_DIR")
        return (f"{user_dir}/crun", "/run/crun") if user_dir else ("/run/crun",)
