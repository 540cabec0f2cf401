"""The real logrotate, late writers and stalled consumers; the long form is `make rotation`."""

from __future__ import annotations

import pytest

from tests.system.log_rotation import SCHEMES, run

SEED = 5


@pytest.mark.parametrize(
    ("scheme", "lines"), [("create", 6000), ("sharedscripts", 3000), ("copytruncate", 6000), ("compress", 1500)]
)
def test_logrotate_loses_nothing_that_is_not_counted(scheme: str, lines: int) -> None:
    """Issue 13, F1 and F2. The kind: every configuration of logrotate (log_rotation.SCHEMES has more of them)."""
    outcome = run(scheme, lines, SEED)
    assert outcome.faults == []
    assert outcome.rotations > 0
    assert outcome.delivered + outcome.lost == outcome.written
    assert SCHEMES[scheme].bursts or not outcome.lost
