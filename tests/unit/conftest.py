"""Fixtures that more than one file of unit tests uses."""

from __future__ import annotations

from tests.log_life import life, make

__all__ = ["life", "make"]
