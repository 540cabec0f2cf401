"""The interface of a container engine or runtime. Each one is a file in engines/, and a line in its registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from nsbridge.config.containerkind import ContainerKind
from nsbridge.supervisor.containers.identity import ContainerRefused, Found, quoted
from nsbridge.supervisor.containers.rows import Listed


class Engine(ABC):
    """One kind of container name. The engine keeps no state: children of the supervisor use it as well."""

    kind: ClassVar[ContainerKind]
    blocks: ClassVar[bool] = False  # `locate` asks another program, which may not answer: a child calls it (asker.py)
    has_events: ClassVar[bool] = False  # `follow` reports starts; otherwise `places` are watched
    comes_back: ClassVar[bool] = True  # False: a name may mean another process one day, and is then refused
    steps_of_a_start: ClassVar[int] = 1  # reports of one start; those before the last find nothing
    matches_several: ClassVar[bool] = False  # a name may match several containers: then none of them (namewatch.py)
    name_checked_every: ClassVar[float] = 0.0  # seconds; 0 if a running container cannot lose its name (namewatch.py)

    @abstractmethod
    def locate(self, name: str) -> Found:
        """Return the running container of that name. Raises NotRunning, ContainerRefused."""

    def check_name(self, name: str) -> None:
        """Raise ContainerRefused if no container can have the name, which may not come from a configuration."""
        if self.kind.pattern is None or not self.kind.pattern.fullmatch(name):
            raise ContainerRefused(f"{self.kind} cannot have a container {quoted(name)}: {self.kind.fix}")

    def is_installed(self) -> bool:
        """True if this host can have such containers: the engine or its state is there. Raises ContainerRefused.

        The answer comes at once, without asking the engine: `nsbridged --check` reports names that cannot match.
        """
        return True

    def places(self, name: str) -> Sequence[tuple[str, str]]:  # noqa: ARG002  (none by default)
        """Return (directory, file name) of what changes when the container starts; empty name: anything there."""
        return ()

    def heard_through(self) -> Sequence[Engine]:
        """Return the engines whose events report this one's starts, if it has none of its own."""
        return ()

    def follow(self, writer: int) -> object:
        """Report starts to `writer` until the engine ends. Raises NsbridgeError. Runs in a child (engine_events.py)."""
        raise NotImplementedError(f"{self.kind} has no events (pipe {writer})")

    def listed(self) -> Iterable[Listed]:
        """Return the engine's containers, running or not. Raises NsbridgeError if it cannot be asked.

        A container that several names reach has a row for each: list_containers joins the rows of one process.
        """
        return ()

    def leftovers(self, rows: Sequence[Listed]) -> Iterable[Listed]:  # noqa: ARG002  (none by default)
        """Return what this engine can name of the host's processes that are in none of the listed `rows`."""
        return ()
