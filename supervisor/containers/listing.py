"""Lists every container of this host under the names that a configuration would use, for `nsbridge containers`.

Each process is listed once. The registry's order decides under which name, and the row has its other names too. Last
come processes in a foreign mnt or ipc namespace that no engine lists (plain `unshare`, services with a private /tmp).
"""

from __future__ import annotations

from dataclasses import replace

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.containers.engines import all_engines
from nsbridge.supervisor.containers.rows import IN_DOUBT, Listed, row_without_process


def list_containers() -> list[Listed]:
    """Return all that can be seen from here; what cannot becomes a row with a note. Blocks 2 s per stuck engine."""
    rows: list[Listed] = []
    for engine in all_engines():
        try:
            for row in engine.listed():
                _add(rows, row)
        except NsbridgeError as error:
            rows.append(row_without_process(f"{engine.kind}:*", IN_DOUBT, str(error)))
    for engine in all_engines():
        rows += engine.leftovers(rows)
    return rows


def _add(rows: list[Listed], row: Listed) -> None:
    """Add a row, or its name to the row of the same process."""
    for number, known in enumerate(rows):
        if row.pid and row.pid == known.pid:
            rows[number] = replace(known, other_names=(*known.other_names, row.name))
            return
    rows.append(row)
