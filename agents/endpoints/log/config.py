"""Defines the table of the `log` endpoint, and what follows from the configuration alone."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from nsbridge.config import values
from nsbridge.config.kind import PathEndpoint, reads


class Framing(StrEnum):
    """The ways in which a log marks the end of a message."""

    LINE = "line"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class LogEndpoint(PathEndpoint):
    """Files that are only appended to, one message after the other."""

    framing: Framing = field(default=Framing.LINE, metadata=reads(values.member(Framing)))

    name: ClassVar[str] = "log"
    notes: ClassVar[int] = 2

    @property
    def journal_place(self) -> str:
        """Return the directory: a log that has another name in it was rotated."""
        return posixpath.normpath(posixpath.dirname(self.out)) if self.out is not None else ""

    @property
    def writes_any_length(self) -> bool:
        """See Endpoint. A log may have any length."""
        return self.in_ is not None
