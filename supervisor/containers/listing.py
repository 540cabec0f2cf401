"""Lists every container of this host under the name that a configuration would use, for `nsbridge containers`.

The registry's order decides under which name a process is listed, and each process is listed once. Last come processes
in a foreign mnt or ipc namespace that no engine lists (plain `unshare`, services with a private /tmp).
"""

from __future__ import annotations

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.containers.engines import all_engines
from nsbridge.supervisor.containers.rows import IN_DOUBT, Listed, row_without_process


def list_containers() -> list[Listed]:
    """Return all that can be seen from here; what cannot becomes a row with a note. Blocks 2 s per stuck engine."""
    rows: list[Listed] = []
    for engine in all_engines():
        known = {row.pid for row in rows if row.pid}
        try:
            rows += [row for row in engine.listed() if row.pid not in known]
        except NsbridgeError as error:
            rows.append(row_without_process(f"{engine.kind}:*", IN_DOUBT, str(error)))
    for engine in all_engines():
        rows += engine.leftovers(rows)
    return rows
