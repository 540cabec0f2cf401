"""Recognises the kernel's own file systems, whose files have no content of their own and act on the kernel."""

from __future__ import annotations

from nsbridge.agents import linux

# Numbers of linux/magic.h, and of the sources of those that it does not name.
_NAMES = {
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
    0x64626720: "debugfs",
    0x74726163: "tracefs",
    0x73636673: "securityfs",
    0x62656570: "configfs",
    0xCAFE4A11: "bpf",
    0x6165676C: "pstore",
    0xDE5E81E4: "efivarfs",
    0xF97CFF8C: "selinux",
    0x43415D53: "smackfs",
    0x5A3C69F0: "apparmorfs",
    0x42494E4D: "binfmt_misc",
    0x1CD1: "devpts",
    0x19800202: "mqueue",
    0x65735543: "fusectl",
    0x6E736673: "nsfs",
    0x7655821: "resctrl",
    0x67596969: "rpc_pipefs",
    0x6E667364: "nfsd",
    0x50495045: "pipefs",
    0x534F434B: "sockfs",
    0x09041934: "anon_inodefs",
    0x50494446: "pidfs",
    0xABBA1974: "xenfs",
}


def pseudo(fd: int) -> str:
    """Return the name of the kernel's own file system that `fd` is on; empty for an ordinary one. fstatfs(2)."""
    return _NAMES.get(linux.filesystem(fd), "")
