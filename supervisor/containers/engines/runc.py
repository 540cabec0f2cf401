"""Finds containers of runc, `runc:NAME`, by the state files that it keeps."""

from __future__ import annotations

import os
import re

from nsbridge.config.containerkind import ContainerKind
from nsbridge.config.trusted import is_real_root
from nsbridge.supervisor.containers.statefiles import RUNC_STATE, StateFileRuntime

# runc, libcontainer/factory_linux.go: validateID. No name begins with -: a command would see an option in it.
KIND = ContainerKind(
    "runc",
    re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,254}"),
    "a runc name has letters, digits, _, +, . and -, and does not begin with -",
    is_unique=True,
)


class Runc(StateFileRuntime):
    """One container has one name."""

    kind = KIND
    state = RUNC_STATE

    def roots(self) -> tuple[str, ...]:
        """Return where runc looks: real root never uses XDG_RUNTIME_DIR (runc's main.go and rootless_linux.go)."""
        forced = os.environ.get("NSBRIDGE_RUNC_ROOT")
        if forced:
            return (forced,)
        user_dir = os.environ.get("XDG_RUNTIME_DIR")
        if user_dir and not is_real_root():
            return (f"{user_dir}/runc",)
        return ("/run/runc",)
