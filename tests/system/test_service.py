"""Services: the examples of examples/service, whose promises the real programs show."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.system.conftest import Factory
from tests.system.nsbridged import Nsbridged
from tests.system.room import LIMIT, run, tool, wait_dead, wait_until
from tests.system.test_relay import route
from tests.system.traffic import Receiver, Sent, put_into_spool

SERVICE = Path(__file__).parents[2] / "examples/service"
UNIT = SERVICE / "nsbridged.service"
NSBRIDGED = Path(sys.executable).with_name("nsbridged")
USER = 1234


def values(key: str) -> list[str]:
    """Return the values of `key` in the unit, all lines together."""
    lines: list[str] = re.findall(rf"^{key}=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    return [word for line in lines for word in line.split()]


def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    """It says what it does not know, and nothing else."""
    copy = tmp_path / UNIT.name
    copy.write_text(
        UNIT.read_text(encoding="utf-8").replace("/usr/local/bin/nsbridged", str(NSBRIDGED)), encoding="utf-8"
    )
    done = run([tool("systemd-analyze"), "verify", "--man=no", copy])
    assert (done.stdout, done.stderr) == (b"", b"")


def test_the_unit_s_capabilities_are_enough_and_all_there_are(tmp_path: Path, runc_container: Factory) -> None:
    """The spool belongs to somebody else; a killed agent is back, and one that is stopped is ended."""
    web, legacy = runc_container(), runc_container()
    for name in ("out", "in"):
        (web.rootfs / "srv" / name).mkdir()
        os.chown(web.rootfs / "srv" / name, USER, USER)
    bounding = ",".join(
        ["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in values("CapabilityBoundingSet"))]
    )
    confined = ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs"]
    with Nsbridged(tmp_path, route(web.spec, legacy.spec), through=confined) as daemon:
        status = Path(f"/proc/{daemon.pid}/status").read_text(encoding="utf-8")
        mask = int(re.findall(r"CapEff:\s*(\w+)", status)[0], 16)
        assert mask.bit_count() == len(values("CapabilityBoundingSet"))
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [b"confined"])
        with Receiver(legacy, 0x51, 1) as receiver:
            assert receiver.messages() == [Sent(7, b"confined")]
        before = daemon.agents()["r:files"]["pid"]
        os.kill(before, signal.SIGKILL)
        daemon.wait_for("RUNNING")
        daemon.call("restart", names=["all"], wait=True)
        os.kill(daemon.agents()["r:files"]["pid"], signal.SIGSTOP)
        daemon.call("stop", names=["r:files"], wait=True)
        assert daemon.call("inspect", name="r:queue")
        assert "not permitted" not in daemon.said().lower()


def test_the_unit_s_filter_has_every_system_call_that_was_seen(tmp_path: Path, runc_container: Factory) -> None:
    """The calls are those of the supervisor and of agents of both kinds, from start to end, with a kill between."""
    web, legacy = runc_container(), runc_container()
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-e", "signal=none", "-o", str(trace)]
    with Nsbridged(tmp_path, route(web.spec, legacy.spec), through=strace) as daemon:
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [b"traced"])
        with Receiver(legacy, 0x51, 1) as receiver:
            receiver.messages()
        os.kill(daemon.agents()["r:queue"]["pid"], signal.SIGKILL)
        daemon.wait_for("RUNNING")
        daemon.call("shutdown")
        assert daemon.process is not None
        daemon.process.wait(LIMIT)
    seen = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(encoding="utf-8", errors="replace"), re.MULTILINE))
    allowed = set(expanded(values("SystemCallFilter")))
    assert "setns" in seen
    assert not seen - allowed, sorted(seen - allowed)


def expanded(names: list[str]) -> Iterator[str]:
    """Yield the system calls of a filter, its groups as systemd has them."""
    for name in names:
        if not name.startswith("@"):
            yield name
            continue
        listed = run(["systemd-analyze", "syscall-filter", name]).stdout.decode().splitlines()[1:]
        yield from expanded([line.strip() for line in listed if line.strip() and not line.strip().startswith("#")])


def test_too_small_host_limits_are_named_by_check_start_reload(tmp_path: Path) -> None:
    """With what to set; none of them stops the daemon."""
    few = ["prlimit", "--nofile=200:200"]
    with Nsbridged(tmp_path, route("runc:nobody-1", "runc:nobody-2"), through=few) as daemon:
        checked = run([*few, NSBRIDGED, "--check", "-c", daemon.config]).stdout.decode()
        complaint = "RLIMIT_NOFILE is 200, and the supervisor of 1 routes may need 330 descriptors: LimitNOFILE=330"
        assert f"nsbridge.toml: this host: {complaint}" in checked
        assert daemon.said().count(f"WARNING nsbridged {complaint}") == 1
        daemon.call("reload")
        assert daemon.said().count(f"WARNING nsbridged {complaint}") == 2


@contextmanager
def runit(directory: Path, daemon: Nsbridged) -> Iterator[Path]:
    """Serve the example of a runit service by a real runsv; yield its directory."""
    service = directory / "sv"
    shutil.copytree(SERVICE / "runit", service)
    (service / "conf").write_text(f"NSBRIDGED={NSBRIDGED}\nNSBRIDGED_CONFIG={daemon.config}\n", encoding="utf-8")
    with subprocess.Popen([tool("runsv"), service], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as runsv:
        try:
            yield service
        finally:
            runsv.terminate()  # as `sv exit`: it ends its service first
            runsv.wait(LIMIT)


def test_runit_starts_it_again_and_ends_it_in_order(tmp_path: Path, runc_container: Factory) -> None:
    """No agent outlives the killed daemon, and the next one carries on."""
    web, legacy = runc_container(), runc_container()
    daemon = Nsbridged(tmp_path, route(web.spec, legacy.spec))
    with runit(tmp_path, daemon) as service:
        wait_until(daemon.answers, "the daemon answers")
        daemon.wait_for("RUNNING")
        pid, agents = daemon_pid(daemon), daemon.agents()
        os.kill(pid, signal.SIGKILL)
        for agent in agents.values():
            wait_dead(agent["pid"])
        wait_until(lambda: daemon.answers() and daemon_pid(daemon) != pid, "runit starts it again")
        daemon.wait_for("RUNNING")
        put_into_spool(web.rootfs / "srv/out", [b"again"])
        with Receiver(legacy, 0x51, 1) as receiver:
            assert receiver.messages() == [Sent(7, b"again")]
        agents = daemon.agents()
        run([tool("sv"), "-w", "20", "down", service])
        assert not daemon.answers()
        assert not any(Path(f"/proc/{agent['pid']}").exists() for agent in agents.values())


def test_runit_leaves_it_down_when_its_configuration_is_wrong(tmp_path: Path) -> None:
    """It would fail the same way once a second, without end."""
    daemon = Nsbridged(tmp_path, "nonsense = 1\n")
    with runit(tmp_path, daemon) as service:
        wait_until(lambda: b"want" in status(service) or status(service).startswith(b"down"), "it is seen to fail")
        wait_until(lambda: status(service).startswith(b"down"), "it is left down")
        stat = service / "supervise/stat"
        wait_until(lambda: stat.read_text(encoding="ascii").startswith("down"), "it is still down, by runsv's own file")


def status(service: Path) -> bytes:
    """Return the output of sv, without the directory's name."""
    return run([tool("sv"), "status", service], check=False).stdout.replace(f": {service}".encode(), b"")


def daemon_pid(daemon: Nsbridged) -> int:
    """Return the pid that the daemon itself reports."""
    return int(daemon.call("status")["daemon"]["pid"])
