"""`nsbridge init` on a host with containers: what it finds, and a configuration that works after a small edit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.system.conftest import Factory
from tests.system.room import LIMIT
from tests.system.traffic import Sent, send_all


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the installed commands to its end."""
    path = Path(sys.executable).with_name(str(words[0]))
    return subprocess.run([path, *words[1:]], capture_output=True, text=True, check=False, timeout=LIMIT)


def test_init_finds_containers_and_check_passes(tmp_path: Path, runc_container: Factory) -> None:
    """Also after its route is uncommented; the queue of a program in a container is named."""
    web, legacy = runc_container(), runc_container()
    send_all(legacy, 0x4D9, [Sent(1, b"one")])
    directory = tmp_path / "etc"
    done = command("nsbridge", "init", directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert web.spec in done.stdout
    file = directory / "nsbridge.toml"
    text = file.read_text(encoding="utf-8")
    for container in (web, legacy):
        assert re.search(rf"^#   {re.escape(container.spec)}  running", text, re.MULTILINE)
    assert "#     has the queue 0x4d9, mode 0" in text
    checked = command("nsbridged", "-c", file, "--check")
    assert checked.returncode == 0
    assert "right; 0 routes" in checked.stdout
    file.write_text(re.sub(r"(?m)^# (?=\[|[a-z_]+ +=)", "", text), encoding="utf-8")
    checked = command("nsbridged", "-c", file, "--check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "right; 1 route\n" in checked.stdout
    chosen = re.findall(r'(?m)^container = "(.*)"', file.read_text(encoding="utf-8"))[1]
    found = re.search(rf"(?m)^#   {re.escape(chosen)}  running.*\n#     has the queue", text)
    assert found, "a container with a queue is chosen, this one or another test's"
    again = command("nsbridge", "init", directory)
    assert (again.returncode, again.stdout) == (1, "")
    assert re.fullmatch(r"nsbridge: \S+/nsbridge.toml exists and is never overwritten: .*\n", again.stderr)


def test_init_without_permission_says_so(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    setpriv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
    words = ["-m", "nsbridge.supervisor.cli.nsbridge", "init", str(tmp_path / "new")]
    done = subprocess.run([*setpriv, *words], capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 77, done.stderr
    assert done.stderr == f"nsbridge: {tmp_path}/new/nsbridge.toml cannot be written: Permission denied\n"
