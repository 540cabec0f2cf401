"""The runtime `runc`: real OCI containers whose programs are the host's own, so that nothing has to be downloaded.

The root file system is an empty directory. All that is mounted in it is listed in the container's config.json, so
runc mounts it in the container's own namespace and it is gone with the container; on the host nothing is mounted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from nsbridge.config.errors import NsbridgeError
from nsbridge.supervisor.cli.demo.containers import (
    ContainerError,
    DemoContainer,
    Role,
    Site,
    await_ready,
    command,
    pipes,
)
from nsbridge.supervisor.cli.demo.waiting import Lines

LIMIT = 30.0  # seconds for one call of runc
_MOST_ATTEMPTS = 4
EXCHANGE = "/exchange"
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
HOST_DIRECTORIES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/etc/ld.so.cache")


def binary() -> str | None:
    """Return the path of runc; search also the directories that su and cron leave out."""
    return shutil.which("runc", path=SEARCH_PATH)


def start(role: Role, site: Site) -> DemoContainer:
    """Make the container; ContainerError with runc's own reason if it cannot."""
    runc = binary()
    if runc is None:
        raise ContainerError("it is not installed")
    # Random, because demos in other pid namespaces may share runc's state and control groups with this one.
    name = f"{site.work.name}-{role}"
    bundle = site.work / role
    (bundle / "rootfs").mkdir(parents=True)
    spec = _spec(role, _host_mounts(bundle / "rootfs"))
    (bundle / "config.json").write_text(json.dumps(spec, indent=1), encoding="utf-8")
    ends = pipes(site.stack)
    site.stack.callback(_delete, runc, name)
    try:
        _run(runc, name, bundle, (ends.program_stdin, ends.program_stdout))
    finally:
        ends.close_program_ends()
    lines = Lines(ends.stdout, site.waits)
    await_ready(lines)
    pid = int((bundle / "pid").read_text(encoding="ascii"))
    return DemoContainer(role, f"runc:{name}", pid, EXCHANGE, ends.stdin, lines)


def _run(runc: str, name: str, bundle: Path, stdio: tuple[int, int]) -> None:
    """Start the container in the background; where its root cannot be pivoted to (a chroot, an initramfs), without."""
    reason = ""
    options: list[str] = []
    for _ in range(_MOST_ATTEMPTS):
        log = bundle / "runc.log"
        log.unlink(missing_ok=True)
        arguments = ["--log", str(log), "--log-format", "json", "run", *options]
        arguments += ["--detach", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"), name]
        try:
            done = subprocess.run(  # noqa: S603  (runc as `binary` found it)
                [runc, *arguments],
                stdin=stdio[0],
                stdout=stdio[1],
                stderr=stdio[1],
                timeout=LIMIT,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ContainerError(f"runc run was not done within {LIMIT:g} s") from None
        except OSError as error:
            raise ContainerError(f"{runc}: {error.strerror}") from None
        if done.returncode == 0:
            return
        if done.returncode == -signal.SIGINT:
            continue  # a Ctrl-C in the instant before it had a session of its own; the demo ends at its next wait
        reason = _reason(log) or f"runc run failed with exit code {done.returncode}"
        if "pivot" not in reason or options:
            break
        options = ["--no-pivot"]
        _delete(runc, name)
    raise ContainerError(reason)


def _reason(log: Path) -> str:
    """Return the last error that runc has logged."""
    try:
        records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        return next(str(record["msg"]) for record in reversed(records) if record["level"] in ("error", "fatal"))
    except (OSError, ValueError, LookupError, StopIteration):
        return ""


def _delete(runc: str, name: str) -> None:
    """Kill the container, remove its state and its cgroups; harmless if it never came to be."""
    command_line = [runc, "delete", "--force", name]
    try:
        done = subprocess.run(  # noqa: S603  (runc as `binary` found it)
            command_line,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT,
            start_new_session=True,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NsbridgeError(f"{' '.join(command_line)}: {error}; the container may be left behind, repeat it") from None
    if done.returncode != 0:
        reason = " ".join(done.stderr.decode("utf-8", "replace").split())
        raise NsbridgeError(f"{' '.join(command_line)}: {reason}; the container may be left behind, repeat it")


def _host_mounts(rootfs: Path) -> list[dict[str, object]]:
    """Read-only mounts of all that Python needs to start; the host's symbolic links are made in `rootfs`."""
    python = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    python |= {str(Path(sys.executable).resolve().parent), str(Path(__file__).resolve().parent)}
    bound: list[Path] = []
    for path in [*map(Path, HOST_DIRECTORIES), *sorted(map(Path, python))]:
        if path.is_symlink() and str(path) in HOST_DIRECTORIES:
            (rootfs / path.relative_to("/")).symlink_to(path.readlink())
        elif path.exists() and not any(path.is_relative_to(outer) for outer in bound):
            bound.append(path)
    return [
        {"destination": str(path), "type": "bind", "source": str(path), "options": ["rbind", "ro", "nosuid", "nodev"]}
        for path in bound
    ]


def _spec(role: Role, host_mounts: list[dict[str, object]]) -> dict[str, object]:
    """Return the container's configuration, as the OCI runtime specification has it."""
    capabilities = ["CAP_DAC_OVERRIDE"]  # to read what the host's file modes leave to root
    return {
        "ociVersion": "1.0.2",
        "hostname": str(role),
        "root": {"path": "rootfs", "readonly": True},
        "process": {
            "args": command(role, EXCHANGE),
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=0755"]},
            _tmpfs("/tmp", "mode=1777"),  # noqa: S108  (the container's own)
            *host_mounts,
            _tmpfs(EXCHANGE, "mode=0700"),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("mount", "ipc", "pid", "uts", "network")]},
    }


def _tmpfs(path: str, mode: str) -> dict[str, object]:
    return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", mode]}
