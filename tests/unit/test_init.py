"""The configuration that `nsbridge init` writes: valid as it is, and valid when its route is uncommented."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nsbridge.config.load import load
from nsbridge.config.schema import Config
from nsbridge.supervisor.cli import init
from nsbridge.supervisor.cli.init import document
from nsbridge.supervisor.cli.ipcqueues import FoundQueue, parse, queues_of
from nsbridge.supervisor.containers.rows import IN_DOUBT, Listed, row_without_process


def running(name: str, pid: int, *, is_own: bool = False) -> Listed:
    return Listed(name, pid, "running", 1, 2, mnt_is_own=is_own, ipc_is_own=is_own)


def loaded(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "nsbridge.toml"
    path.write_text(text, encoding="utf-8")
    return load(str(path))


def uncommented(text: str) -> str:
    """Remove the `# ` before each line that is a key or a header, as a person does."""
    return re.sub(r"(?m)^# (?=\[|[a-z_]+ +=)", "", text)


HOSTS = {
    "none": [],
    "one": [running("docker:web", 10)],
    "two": [running("docker:web", 10), running("runc:legacy", 11)],
    "stopped": [row_without_process("docker:web", "exited", ""), running("docker:legacy", 11)],
    "hostile": [
        running('crun:"\\n]x', 10),
        running("crun:a b", 11),
        row_without_process("runc:*", IN_DOUBT, "gone\n[x]"),
    ],
    "many": [running(f"docker:web{number}", 10 + number) for number in range(100)],
}


@pytest.mark.parametrize("host", HOSTS)
def test_what_is_written_is_a_valid_configuration(tmp_path: Path, host: str) -> None:
    text = document(HOSTS[host], {})
    assert loaded(tmp_path, text).routes == ()
    (route,) = loaded(tmp_path, uncommented(text)).routes
    assert [agent.name for agent in route.agents] == ["orders:files", "orders:queue"]
    assert max(map(len, text.splitlines())) <= 160
    for row in HOSTS[host][:40]:
        assert f"#   {row.name}" in text.replace("\\\\", "\\") or not row.name.isprintable()


def test_example_names_the_container_that_has_queues(tmp_path: Path) -> None:
    queues = {11: [FoundQueue(0x4D2, 0o660, 3, 1000), FoundQueue(0x4D9, 0o600, 0, 0)]}
    text = document([running("docker:web", 10), running("runc:legacy", 11), running("docker:other", 12)], queues)
    assert "#     has the queue 0x4d2, mode 0660, 3 messages, uid 1000\n" in text
    first, second = loaded(tmp_path, uncommented(text)).routes[0].agents
    assert (str(first.container), str(second.container)) == ("docker:web", "runc:legacy")
    places = second.endpoint.places()
    assert (places["in"].where, places["out"].where) == (0x4D2, 0x4D9)


def test_file_that_exists_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "list_containers", list)
    (tmp_path / "nsbridge.toml").symlink_to("nowhere")
    with pytest.raises(Exception, match="is never overwritten"):
        init.run(str(tmp_path))
    (tmp_path / "nsbridge.toml").unlink()
    wrote = init.run(str(tmp_path / "new/etc"))
    assert wrote[1] == f"wrote {tmp_path}/new/etc/nsbridge.toml"
    assert (tmp_path / "new/etc/nsbridge.toml").stat().st_mode & 0o777 == 0o644
    before = (tmp_path / "new/etc/nsbridge.toml").read_text(encoding="utf-8")
    with pytest.raises(Exception, match="is never overwritten"):
        init.run(str(tmp_path / "new/etc"))
    assert (tmp_path / "new/etc/nsbridge.toml").read_text(encoding="utf-8") == before


def test_queues_are_read_from_the_kernel_s_table() -> None:
    table = (
        "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid stime rtime ctime\n"
        "      1234          0   660          12          3     0     0  1000  1000     0     0     0     0     1\n"
        "         0          1   600           0          0     0     0     0     0     0     0     0     0     1\n"
        "-559038737          2   600           0          0     0     0     0     0     0     0     0     0     1\n"
        "      cut off\n"
    )
    assert parse(table.encode()) == [FoundQueue(1234, 0o660, 3, 1000), FoundQueue(0xDEADBEEF, 0o600, 0, 0)]


def test_process_that_is_gone_has_no_queues() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert queues_of(child) == []
