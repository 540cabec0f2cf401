from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from signal import Signals
from types import FrameType, TracebackType
from typing import IO, Any

from typing_extensions import Self

class DaemonError(Exception): ...
class DaemonOSEnvironmentError(DaemonError, OSError): ...
class DaemonProcessDetachError(DaemonError, OSError): ...

class DaemonContext:
    def __init__(
        self,
        chroot_directory: str | None = None,
        working_directory: str = "/",
        umask: int = 0,
        uid: int | None = None,
        gid: int | None = None,
        initgroups: bool = False,
        prevent_core: bool = True,
        detach_process: bool | None = None,
        files_preserve: Iterable[int | IO[Any]] | None = None,
        pidfile: AbstractContextManager[Any] | None = None,
        stdin: IO[Any] | None = None,
        stdout: IO[Any] | None = None,
        stderr: IO[Any] | None = None,
        signal_map: Mapping[Signals, str | Callable[[int, FrameType | None], object] | None] | None = None,
    ) -> None: ...
    @property
    def is_open(self) -> bool: ...
    def open(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
