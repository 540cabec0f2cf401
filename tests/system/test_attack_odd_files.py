"""A container gives its files what no honest program does: times that no clock shows.

The kind of fault: a number of the container's is kept in fewer bits than it may have, and what keeps it raises.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.system.conftest import Factory
from tests.system.hostile_scene import scene
from tests.system.room import wait_until

TIMES = {"before 1970": -86_400, "1600": -11_676_096_000, "2300": 10_413_792_000, "2400": 13_569_465_600}


@pytest.mark.parametrize("when", TIMES.values(), ids=TIMES)
def test_a_file_s_odd_time_of_change_ends_no_agent(tmp_path: Path, unshare_container: Factory, when: int) -> None:
    """In a spool, and of a file whose content is the message, also when the agent starts anew."""
    with scene(tmp_path, unshare_container, "file") as played:
        odd = played.evil / "s/odd"
        odd.write_bytes(b"odd")
        os.utime(odd, (when, when))
        odd.rename(played.evil / "s/out/000")
        content = played.evil / "file/content"
        content.write_bytes(b"content")
        os.utime(content, (when, when))
        content.rename(played.evil / "file/out")
        wait_until(lambda: (played.peer / "file/in").read_bytes() == b"content", played.daemon.said())
        played.everything_passes()
        played.begin_anew("file:evil", played.agent("file:evil")["pid"])
        played.begin_anew("s:evil", played.agent("s:evil")["pid"])
        played.everything_passes()
        assert "exit code" not in played.daemon.said()
