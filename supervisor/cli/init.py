"""`nsbridge init`: writes a commented configuration to start from, with what there is on this host.

Nothing in it is active but [daemon]: a route that nobody has checked would make directories in containers. The lines of
the example are made of what was found, and become a valid route when their `# ` is removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nsbridge.config.errors import NotPermittedError, NsbridgeError
from nsbridge.config.text import escape
from nsbridge.supervisor.cli.ipcqueues import FoundQueue, queues_of
from nsbridge.supervisor.containers.listing import list_containers
from nsbridge.supervisor.containers.rows import IN_DOUBT, Listed

FILE = "nsbridge.toml"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]*")  # names that TOML takes as they are
_MOST = 40  # containers that are listed
_MOST_QUEUES = 8  # of one container

_HEAD = """\
# The configuration of nsbridge, made by `nsbridge init`: a start, with what there was on this host.
# `nsbridged --check` reads it and lists everything that is wrong; man nsbridge.toml explains every key.

[daemon]
# state_dir = "/var/lib/nsbridge"           # default: /run/nsbridge, which does not outlive the host
# log       = { file = "/var/log/nsbridge.log" }   # default: stderr; with --daemon only `nsbridgectl tail`
# control   = { read_group = "adm" }        # members of that group may look, e.g. with nsbridgectl status
"""

_ROUTE = """
# A route joins two containers. To use this one, remove the `# ` before its lines, put your own paths and keys there,
# and create {parent} in {files}: nsbridge then makes out and in.

# [route.orders.agent.files]                # this agent is called orders:files
# container = "{files}"
# spool     = {{ out = "{parent}/out", in = "{parent}/in" }}   # or log, or file: see the manual

# [route.orders.agent.queue]                # this agent is called orders:queue
# container = "{queue}"
# queue     = {{ in = {{ key = {key_in}, type = 1 }}, out = {{ key = {key_out} }} }}   # the keys that its program uses
"""


def run(directory: str) -> list[str]:
    """Write DIRECTORY/nsbridge.toml; return the lines to print. Raises NsbridgeError, also if the file exists."""
    path = Path(directory, FILE)
    if os.path.lexists(path):
        raise NsbridgeError(f"{path} exists and is never overwritten: name another directory (nsbridge init DIR)")
    rows = list_containers()
    queues = {row.pid: queues_of(row.pid) for row in rows if row.pid and not row.ipc_is_own}
    text = document(rows, queues)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        kind = NotPermittedError if isinstance(error, PermissionError) else NsbridgeError
        raise kind(f"{path} cannot be written: {error.strerror}") from None
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    there = [row.name for row in rows if row.state != IN_DOUBT]
    found = f"{len(there)} container{'' if len(there) == 1 else 's'}" + (f": {_list(there)}" if there else "")
    return [f"found {found}", f"wrote {path}", f"next: edit it, then run nsbridged -c {path} --check"]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return escape(", ".join(names[:_MOST])) + more


def document(rows: Sequence[Listed], queues: dict[int, list[FoundQueue]]) -> str:
    """Return the text of a configuration for a host with these containers; `queues` of a container by its pid."""
    running = [row for row in rows if row.pid and _PLAIN.fullmatch(row.name)]
    with_queue = next((row for row in running if queues.get(row.pid)), None)
    others = [row for row in running if row is not with_queue and not row.mnt_is_own]
    files = others[0].name if others else "docker:web"
    queue = with_queue.name if with_queue else others[1].name if len(others) > 1 else "docker:legacy"
    keys = [found.key for found in queues.get(with_queue.pid, ())] if with_queue else []
    key_in, key_out = (keys * 2)[:2] if len(keys) > 1 else (*keys, 0x4D2, 0x4D3)[:2]
    route = _ROUTE.format(
        files=files, queue=queue, parent="/var/spool/orders", key_in=f"{key_in:#x}", key_out=f"{key_out:#x}"
    )
    return _HEAD + "\n".join(["", *_found(rows, queues), ""]) + route


def _found(rows: Sequence[Listed], queues: dict[int, list[FoundQueue]]) -> Iterator[str]:
    """Yield comments about what there is on this host."""
    there = [row for row in rows if row.state != IN_DOUBT]
    yield f"# Containers of this host ({len(there)}); `nsbridge containers` lists them as they are now:"
    for row in there[:_MOST]:
        yield _comment(f"{row.name}  {row.state}" + (f"  {row.note}" if row.note else ""))
        for found in queues.get(row.pid, [])[:_MOST_QUEUES]:
            yield _comment(
                f"  has the queue {found.key:#x}, mode {found.mode:04o}, {found.messages} messages, uid {found.uid}"
            )
    if len(there) > _MOST:
        yield f"#   and {len(there) - _MOST} more"
    if not there:
        yield "#   none: start one, or use pidfile:PATH, pid:N or ns:PATH for a process that no engine has started"
    for row in rows:
        if row.state == IN_DOUBT:
            yield _comment(f"{row.name} could not be looked at: {row.note}")


def _comment(text: str) -> str:
    return f"#   {escape(text)}"
