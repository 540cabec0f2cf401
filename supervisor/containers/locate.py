"""Finds the containers that a configuration names: `locate` returns a running container's init process.

Start here. identity.py says who a process is, and engines/ holds a file for each kind of name. Nothing here keeps state
or uses an event loop.
"""

from __future__ import annotations

from nsbridge.config.schema import Container
from nsbridge.supervisor.containers.engines import engine_of
from nsbridge.supervisor.containers.identity import Found


def locate(container: Container) -> Found:
    """Find a container. Raises NotRunning (try again later) or ContainerRefused (a person must fix something).

    Asking an engine that `blocks` may take dockerapi.TIME_LIMIT seconds; the other kinds answer at once.
    """
    return engine_of(container.kind).locate(container.name)
