"""Defines the table of the `spool` endpoint, and what follows from the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from nsbridge.config import values
from nsbridge.config.kind import PathEndpoint, path_place, reads
from nsbridge.config.schema import Place

# Names that well-known programs give to files that they have not finished: editors, browsers, copying programs.
TEMPORARY_NAMES = (
    "*.tmp",
    "*.temp",
    "*.part",
    "*.partial",
    "*.filepart",
    "*.crdownload",
    "*.swp",
    "*.swx",
    "*~",
)


@dataclass(frozen=True, slots=True)
class SpoolEndpoint(PathEndpoint):
    """Directories of files, one message a file."""

    # Taken files are moved to `done` when they are delivered; None deletes them.
    done: str | None = field(default=None, metadata=reads(values.path))
    # Shell patterns of names in `out` that are not taken.
    ignore: tuple[str, ...] = field(default=TEMPORARY_NAMES, metadata=reads(values.listed(values.name_pattern)))

    name: ClassVar[str] = "spool"
    notes: ClassVar[int] = 1
    serves_directories: ClassVar[bool] = True

    def places(self) -> Mapping[str, Place]:
        """See Endpoint."""
        places = dict(PathEndpoint.places(self))
        return places if self.done is None else places | {"done": path_place(self.done)}
