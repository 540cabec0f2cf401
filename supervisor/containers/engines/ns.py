"""A namespace file, `ns:PATH`: /proc/PID/ns/TYPE, or one that ip-netns(8) or mount --bind has made."""

from __future__ import annotations

from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers.engine import Engine
from nsbridge.supervisor.containers.identity import Found, found_by_pid, pid_named_by
from nsbridge.supervisor.containers.namespacefile import open_namespace_file

KIND = ContainerKind("ns", None, 'write a path, like "ns:/run/netns/web/ipc"', is_namespace_file=True)


class NamespaceFile(Engine):
    """A path below /proc names a process, which is followed; any other path names no process."""

    kind = KIND
    comes_back = False

    def locate(self, name: str) -> Found:
        """See Engine."""
        pid = pid_named_by(name)
        if pid:
            return found_by_pid(pid, name)
        open_namespace_file(name)
        return Found(0, 0, name)
