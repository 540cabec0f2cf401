"""README's commands, as a new user runs them: two containers of their own, the bridge between, upgrade, removal.

What they change is changed in a mount namespace: /etc, /opt, /usr/local and /run are copies there. `debian:12` is made
of this machine's perl and busybox. With NSB_TEST_README=full (`make readme`) pip, pipx and uv install, too; otherwise
/opt/nsbridge is this tree's own environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest

from tests.system.engine_daemons import DockerDaemon
from tests.system.engines import BUSYBOX
from tests.system.room import LIMIT, run, tool, wait_until

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("NSB_TEST_README") == "full"
APPLETS = ("sh", "sleep", "cat", "mv", "chown", "echo", "stat")

_SETUP = """
mount -t tmpfs scratch "$1"
for place in etc opt usr/local; do
    mkdir -p "$1/$place" "$1/work/$place"
    mount -t overlay overlay -o "lowerdir=/$place,upperdir=$1/$place,workdir=$1/work/$place" "/$place"
done
mount -t tmpfs -o mode=0755 run /run
echo ready
exec cat
"""


class Host:
    """A shell on a machine of which some directories are copies."""

    def __init__(self, scratch: Path, env: Mapping[str, str]) -> None:
        self._env = {**os.environ, **env, "PATH": f"/usr/local/bin:{os.environ['PATH']}"}
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _SETUP, "host", scratch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"

    def run(self, script: str, *, check: bool = True) -> str:
        """Run lines of sh from the top of the repository; return what they print."""
        enter = ["nsenter", f"--target={self._holder.pid}", "--mount", f"--wdns={ROOT}", "--"]
        done = run([*enter, "sh", "-ec", script], check=check, env=self._env, timeout=120)
        return done.stdout.decode()

    def close(self) -> None:
        with suppress(RuntimeError):
            self.run("nsbridgectl shutdown --wait")
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait(LIMIT)


def blocks(heading: str) -> list[str]:
    """Return the shell blocks below one of README's headings."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", part, re.DOTALL)


def debian_image() -> bytes:
    """Return a tar of a root directory with busybox, perl and perl's libraries, and the users root and 1000."""
    perl = tool("perl")
    libraries = re.findall(r"(/\S+) \(0x", run(["ldd", perl]).stdout.decode())
    files = {path: Path(path).read_bytes() for path in libraries}
    files |= {BUSYBOX: Path(tool("busybox")).read_bytes(), "/usr/bin/perl": Path(perl).read_bytes()}
    files["/etc/passwd"] = b"root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for directory in sorted({str(parent) for path in files for parent in Path(path).parents} - {"/"}):
            archive.addfile(member(directory, tarfile.DIRTYPE))
        for path, content in files.items():
            archive.addfile(member(path, tarfile.REGTYPE, size=len(content)), BytesIO(content))
        for applet in APPLETS:
            archive.addfile(member(f"/bin/{applet}", tarfile.SYMTYPE, linkname="busybox"))
    return packed.getvalue()


def member(path: str, kind: bytes, **more: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(path.lstrip("/"))
    made.type, made.mode = kind, 0o755
    for name, value in more.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def host(docker_daemon: DockerDaemon, tmp_path: Path) -> Iterator[Host]:
    docker_daemon.command("import", "--change", "ENV PATH=/usr/bin:/bin", "-", "debian:12", stdin=debian_image())
    made = Host(tmp_path, docker_daemon.env)
    try:
        yield made
    finally:
        made.close()
        docker_daemon.command("rm", "--force", "web", "legacy", check=False)
        docker_daemon.command("volume", "rm", "orders", check=False)


def test_commands_of_readme(host: Host) -> None:
    (install,) = blocks("Install it")
    containers, configure, send = blocks("Use it")
    upgrade, remove = blocks("Upgrade it, remove it")
    if FULL:
        _install_by_tools(host)
    else:
        install = f"ln -s {sys.prefix} /opt/nsbridge\n{_without_pip(install)}"
        upgrade = _without_pip(upgrade)
    host.run(install)
    host.run(containers)
    assert "docker:legacy" in host.run(configure)
    write, answer, status = send.splitlines()
    host.run(write)
    wait_until(lambda: "done: two coffees" in host.run(answer, check=False), "the answer is there")
    shown = [line.split()[:2] for line in host.run(status).splitlines()]
    assert shown == [["orders:web", "RUNNING"], ["orders:legacy", "RUNNING"]]
    assert host.run("docker exec web stat -c %u /var/spool/orders/out").strip() == "1000"
    host.run(upgrade)
    host.run(write.replace("order-1", "order-2").replace("two", "three"))
    wait_until(lambda: "done: three coffees" in host.run(answer, check=False), "the next answer is there")
    assert "pending" not in host.run(remove)
    assert host.run("ls /run /opt /etc/nsbridge 2>/dev/null | grep nsbridge || true") == ""


def _install_by_tools(host: Host) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for tool_name in ("pipx", "uv"):
        (command,) = re.findall(rf"^\| {tool_name} \| `(.*)` \|$", text, re.MULTILINE)
        host.run(f"PATH={sys.prefix}/bin:$PATH; {command}")
        assert host.run("/usr/local/bin/nsbridged --version").startswith("nsbridged ")
        host.run("rm /usr/local/bin/nsbridge*")


def _without_pip(script: str) -> str:
    return "".join(
        line for line in script.splitlines(keepends=True) if "python3 -m venv" not in line and "/pip " not in line
    )
