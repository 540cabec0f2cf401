"""Which runtime makes the two containers: the one that was asked for or, with `auto`, the first that works here."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from nsbridge.config.errors import NotPermittedError, NsbridgeError
from nsbridge.config.values import SUN_PATH
from nsbridge.supervisor.demo import namespaces, runc, userns
from nsbridge.supervisor.demo.containers import Container, ContainerError, Role, Site, namespace
from nsbridge.supervisor.demo.screen import Screen
from nsbridge.supervisor.demo.waiting import Waits

AUTO = "auto"
CHOICES = (AUTO, runc.NAME, namespaces.NAME)
ABOUT = {
    Role.CLIENT: ("mnt", "its program speaks files only"),
    Role.SERVER: ("ipc", "its program speaks a SysV message queue only"),
}


class Runtime(Protocol):
    """A module that makes containers."""

    NAME: str
    DESCRIPTION: str

    def start(self, role: Role, site: Site) -> Container:
        """Make the container; ContainerError if that is not possible here."""


def make(requested: str, screen: Screen, waits: Waits, stack: ExitStack) -> tuple[Site, Container, Container]:
    """The demo's own directory, the client's container and the server's; `stack` removes all three."""
    privileged = userns.may_make_namespaces()
    if requested == runc.NAME and not privileged:
        raise NotPermittedError("--runtime runc needs root: use sudo, or --runtime unshare, which does without")
    if not privileged:
        screen.say("not root, so all this happens in a user namespace, in which the demo is")
        userns.enter()
    elif requested != namespaces.NAME:
        try:
            return _make_both(runc, screen, waits, stack)
        except ContainerError as error:
            if requested == runc.NAME:
                raise NsbridgeError(f"runc cannot run a container here: {error}; try --runtime unshare") from None
            screen.say(f"runc cannot run a container here ({error}): plain namespaces instead")
    try:
        return _make_both(namespaces, screen, waits, stack)
    except ContainerError as error:
        reason = f"a container cannot be made here: {error}"
        raise (NsbridgeError(reason) if privileged else userns.refusal(reason)) from None


def _make_both(runtime: Runtime, screen: Screen, waits: Waits, stack: ExitStack) -> tuple[Site, Container, Container]:
    with ExitStack() as attempt:
        site = Site(_own_directory(attempt), attempt, waits)
        client, server = runtime.start(Role.CLIENT, site), runtime.start(Role.SERVER, site)
        screen.say(f"two containers, made with {runtime.DESCRIPTION}")
        for container in (client, server):
            kind, about = ABOUT[container.role]
            screen.detail(
                f"{container.role}  pid {container.pid}  {kind} namespace {container.namespace(kind)} "
                f"(the host's is {namespace('self', kind)}): {about}"
            )
        stack.push(attempt.pop_all())
    return Site(site.work, stack, waits), client, server


def _own_directory(stack: ExitStack) -> Path:
    """A temporary directory; in /tmp if elsewhere the control socket's path would be too long."""
    parent = Path(tempfile.gettempdir())
    if len(bytes(parent / "nsbridge-demo-12345678" / "control.sock")) > SUN_PATH:
        parent = Path("/tmp")  # noqa: S108  (mkdtemp makes a directory there that nobody else can enter)
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nsbridge-demo-", dir=parent)))
