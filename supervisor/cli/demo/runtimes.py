"""Choice of the runtime that makes the two containers: the requested one or, with `auto`, the first that works here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nsbridge.config.errors import NotPermittedError, NsbridgeError
from nsbridge.config.values import SUN_PATH
from nsbridge.supervisor.cli.demo import namespaces, runc, userns
from nsbridge.supervisor.cli.demo.containers import ContainerError, DemoContainer, Role, Site, namespace
from nsbridge.supervisor.cli.demo.screen import Screen
from nsbridge.supervisor.cli.demo.waiting import Waits

ABOUT = {
    Role.CLIENT: ("mnt", "its program speaks files only"),
    Role.SERVER: ("ipc", "its program speaks a SysV message queue only"),
}


@dataclass(frozen=True, slots=True)
class DemoRuntime:
    """A way to make containers; `start` raises ContainerError if it is not possible here."""

    name: str
    description: str
    start: Callable[[Role, Site], DemoContainer]


RUNC = DemoRuntime("runc", "runc: mnt, ipc, pid, uts and net namespaces of their own", runc.start)
UNSHARE = DemoRuntime("unshare", "plain namespaces: mnt, ipc, pid and uts of their own", namespaces.start)


def make(requested: str, screen: Screen, waits: Waits, stack: ExitStack) -> tuple[Site, DemoContainer, DemoContainer]:
    """Return the demo's own directory, the client's container and the server's; `stack` removes all three."""
    privileged = userns.may_make_namespaces()
    if requested == RUNC.name and not privileged:
        raise NotPermittedError("--runtime runc needs root: use sudo, or --runtime unshare, which does without")
    if not privileged:
        screen.step("not root, so all this happens in a user namespace, in which the demo is")
        userns.enter()
    elif requested != UNSHARE.name:
        try:
            return _make_both(RUNC, screen, waits, stack)
        except ContainerError as error:
            if requested == RUNC.name:
                raise NsbridgeError(f"runc cannot run a container here: {error}; try --runtime unshare") from None
            screen.step(f"runc cannot run a container here ({error}): plain namespaces instead")
    try:
        return _make_both(UNSHARE, screen, waits, stack)
    except ContainerError as error:
        reason = f"a container cannot be made here: {error}"
        raise (NsbridgeError(reason) if privileged else userns.refusal(reason)) from None


def _make_both(
    runtime: DemoRuntime, screen: Screen, waits: Waits, stack: ExitStack
) -> tuple[Site, DemoContainer, DemoContainer]:
    with ExitStack() as attempt:
        site = Site(_own_directory(attempt), attempt, waits)
        client, server = runtime.start(Role.CLIENT, site), runtime.start(Role.SERVER, site)
        screen.step(f"two containers, made with {runtime.description}")
        for container in (client, server):
            kind, about = ABOUT[container.role]
            screen.detail(
                f"{container.role}  pid {container.pid}  {kind} namespace {container.namespace(kind)} "
                f"(the host's is {namespace('self', kind)}): {about}"
            )
        stack.push(attempt.pop_all())
    return Site(site.work, stack, waits), client, server


def _own_directory(stack: ExitStack) -> Path:
    """Make a temporary directory; in /tmp if elsewhere the control socket's path would be too long."""
    parent = Path(tempfile.gettempdir())
    if len(bytes(parent / "nsbridge-demo-12345678" / "control.sock")) > SUN_PATH:
        parent = Path("/tmp")  # noqa: S108  (mkdtemp makes a directory there that no other user can enter)
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nsbridge-demo-", dir=parent)))
