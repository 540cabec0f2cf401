"""Names of files that travel with messages. They come out of containers: bytes that nothing has checked."""

from __future__ import annotations

LONGEST_NAME = 255  # bytes: NAME_MAX


def is_file_name(name: bytes) -> bool:
    """True if a message's file can have this name: it is no path, not hidden, and not too long."""
    return 0 < len(name) <= LONGEST_NAME and not name.startswith(b".") and b"/" not in name and b"\0" not in name
