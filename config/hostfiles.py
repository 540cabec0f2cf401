"""Files of the host that an agent reads as root before it enters: keys, credentials and certificates."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from nsbridge.config import trusted


class HostFile(NamedTuple):
    """A file that the configuration names."""

    key: str  # of its endpoint's table, like tls.key
    path: str
    is_secret: bool  # no other user may read it


class UnusableFileError(Exception):
    """A file cannot be used; `str()` has the key, the path, the reason and the fix."""


def open_host_file(file: HostFile) -> int:
    """Return a descriptor of the file. Raises UntrustedError, UnusableFileError."""
    try:
        fd = trusted.open_file(file.path)
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
        raise UnusableFileError(f"{file.key} {file.path}: {why}") from None
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if file.is_secret and mode & stat.S_IROTH:
        os.close(fd)
        raise UnusableFileError(
            f"{file.key} {file.path}: every user of this host can read it (mode {mode:04o}), and it is secret; "
            f"chmod o= {file.path}"
        )
    return fd
