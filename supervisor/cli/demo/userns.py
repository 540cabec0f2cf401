"""A demo without root: it makes a user namespace in which it is root, and everything else happens there.

Source: user_namespaces(7).
"""

from __future__ import annotations

import os
from pathlib import Path

from nsbridge.agents import linux
from nsbridge.config.errors import NotPermittedError

CAP_SYS_ADMIN = 21  # linux/capability.h

# Each forbids user namespaces to the unprivileged when it has this value. The first two are of some distributions only.
FORBIDDING = {
    "kernel.unprivileged_userns_clone": ("0", "1"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
    "user.max_user_namespaces": ("0", "10000"),
}


def may_make_namespaces() -> bool:
    """True if this process has CAP_SYS_ADMIN, without which it cannot make mount and ipc namespaces."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> CAP_SYS_ADMIN & 1)


def enter() -> None:
    """Become root in a user namespace of one's own; NotPermittedError names the sysctl that forbids it."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        linux.unshare(linux.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")  # else a gid_map needs privileges
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")
    except OSError as error:
        raise refusal(f"{error.strerror} (user namespace)") from None


def refusal(reason: str) -> NotPermittedError:
    """Return the error that names what forbids user namespaces here; `reason` is what failed."""
    what = f"the demo needs root or a user namespace of its own: {reason}"
    for name, (value, better) in FORBIDDING.items():
        if _sysctl(name) == value:
            fix = f"run it as root, or permit it with: sysctl -w {name}={better}"
            return NotPermittedError(f"{what}; {name} = {value} forbids it: {fix}")
    return NotPermittedError(
        f"{what}; no sysctl forbids it (kernel.unprivileged_userns_clone, user.max_user_namespaces), so what this runs "
        "in does, a container's seccomp filter, a chroot or a security module: run it as root on the host itself"
    )


def _sysctl(name: str) -> str | None:
    try:
        return Path("/proc/sys", *name.split(".")).read_text(encoding="ascii").strip()
    except OSError:
        return None
