"""Fixtures that more than one file of unit tests uses, and the guard against late imports that is over all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dead_box import box
from tests.log_life import life, make
from tests.spool_life import make_spool
from tests.unit.late_imports import LateImports

__all__ = ["box", "life", "make", "make_spool"]


@pytest.fixture(autouse=True)
def no_late_imports() -> Iterator[None]:
    """Fail a test of agents/ that imports a module which an agent would not have loaded before the join."""
    with LateImports() as guard:
        yield
    assert guard.seen == [], "an agent would read these from its container"
