"""Defines the table of the `spool` endpoint, and what follows from the configuration alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from nsbridge.config import values
from nsbridge.config.filenames import is_file_name
from nsbridge.config.kind import PathEndpoint, path_place, reads
from nsbridge.config.patterns import TakenNames
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


_ENDS = {"error": "out", "match": "out", "name_": "in_", "suffix": "in_"}  # fields, and the end that each is about


class Naming(StrEnum):
    """The names of the files in a spool's `in`."""

    SEQUENCE = "sequence"  # EPOCH-SEQ.TYPE
    ORIGINAL = "original"  # the name of the file that the message was taken from, if it was one


@dataclass(frozen=True, slots=True)
class SpoolEndpoint(PathEndpoint):
    """Directories of files, one message a file."""

    # Taken files are moved to `done` when they are delivered; None deletes them.
    done: str | None = field(default=None, metadata=reads(values.path))
    # Files that can never be taken are moved to `error`, each with its reason beside it; None leaves them.
    error: str | None = field(default=None, metadata=reads(values.path))
    # Shell patterns of names in `out`: only what `match` has is taken, and nothing that `ignore` has.
    match: tuple[str, ...] = field(default=("*",), metadata=reads(values.name_patterns))
    ignore: tuple[str, ...] = field(default=TEMPORARY_NAMES, metadata=reads(values.listed(values.name_pattern)))

    # Names of files in `in`: by number, or as their files were named.
    name_: Naming = field(default=Naming.SEQUENCE, metadata=reads(values.member(Naming)))
    suffix: str = field(default="", metadata=reads(values.name_suffix))

    name: ClassVar[str] = "spool"
    notes: ClassVar[int] = 1
    serves_directories: ClassVar[bool] = True
    waiting_size: ClassVar[int] = 4 << 20

    @property
    def keeps_names(self) -> bool:
        """See Endpoint."""
        return self.name_ is Naming.ORIGINAL

    def kept_name(self, name: bytes) -> bytes:
        """See Endpoint. The suffix is added, unless the name ends with it."""
        suffix = os.fsencode(self.suffix)
        kept = name if name.endswith(suffix) else name + suffix
        return kept if is_file_name(kept) else b""

    @property
    def takes(self) -> TakenNames:
        """Return the names that are taken from `out`."""
        return TakenNames(self.match, self.ignore)

    def idle_keys(self) -> Mapping[str, str]:
        """See Endpoint."""
        default = SpoolEndpoint()
        idle = (key for key, end in _ENDS.items() if getattr(self, end) is None)
        return {key.rstrip("_"): _ENDS[key].rstrip("_") for key in idle if getattr(self, key) != getattr(default, key)}

    def places(self) -> Mapping[str, Place]:
        """See Endpoint."""
        places = dict(PathEndpoint.places(self))
        if self.out is not None:
            places["out"] = path_place(self.out, self.takes)
        beside = {"done": self.done, "error": self.error}
        return places | {key: path_place(path) for key, path in beside.items() if path is not None}
