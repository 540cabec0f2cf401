"""The DaemonSet of examples/kubernetes runs as a real pod: containerd's CRI plugin, no `privileged`, read-only root."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.system.containerd_daemon import CRI_NAMESPACE, ContainerdDaemon, PodOfOne
from tests.system.daemonset import DaemonSetPod
from tests.system.engines import Program
from tests.system.room import wait_dead, wait_until
from tests.system.traffic import Receiver, Sent

EXAMPLE = Path(__file__).parents[2] / "examples/kubernetes/nsbridge.yaml"
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(EXAMPLE.read_text(encoding="utf-8")))
CAPABILITIES = 12
MESSAGES = 60


class Node:
    """A node with the two pods of the example's route, and the DaemonSet's."""

    def __init__(self, containerd: ContainerdDaemon, base: Path) -> None:
        self.containerd = containerd
        self.run = base / "run"
        self.run.mkdir(mode=0o755)
        bpf = base / "bpf"
        bpf.mkdir()
        (containerd.state / "runc").mkdir(exist_ok=True)
        paths = {"/run/nsbridge": self.run, "/run/containerd": containerd.state, "/sys/fs/bpf": bpf}
        self.web = PodOfOne(Program(), containerd, f"web-{os.getpid()}", "shop")
        self.legacy = PodOfOne(Program(), containerd, "legacy-0", "shop")
        self.pod = DaemonSetPod(DOCUMENTS, containerd, base, paths)

    def start(self) -> None:
        """Start the two pods."""
        for each in (self.web, self.legacy):
            each.start()
        (self.web.rootfs / "var/spool/orders").mkdir(parents=True)

    def close(self) -> None:
        """Remove all."""
        self.pod.remove()
        for each in (self.web, self.legacy):
            each.delete()

    def states(self) -> dict[str, str]:
        """Return the agents' states; none while the daemon does not answer."""
        command = [sys.executable, "-m", "nsbridge.supervisor.cli.nsbridgectl"]
        command += ["-s", str(self.run / "control.sock"), "status", "--json"]
        done = subprocess.run(command, capture_output=True, check=False)
        routes = json.loads(done.stdout)["routes"] if done.stdout else []
        return {agent["name"]: agent["state"] for route in routes for agent in route["agents"]}

    def runs(self) -> bool:
        """True if both agents are RUNNING."""
        return self.states() == {"orders:web": "RUNNING", "orders:legacy": "RUNNING"}


@pytest.fixture
def node(containerd: ContainerdDaemon, tmp_path: Path) -> Iterator[Node]:
    tmp_path.chmod(0o755)
    made = Node(containerd, tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_daemonset_bridges_two_pods_and_is_replaced_without_loss(node: Node) -> None:
    """It has its twelve capabilities and no more. Messages come while its container is stopped and made again."""
    daemon = node.pod.start("nsbridged")
    pid = node.pod.pid(daemon)
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    assert int(re.findall(r"CapBnd:\s*(\w+)", status)[0], 16).bit_count() == CAPABILITIES
    assert re.search(r"^\S+ / \S+ ro,", Path(f"/proc/{pid}/mounts").read_text(encoding="utf-8"), re.MULTILINE)
    wait_until(node.runs, "both agents run")
    _look_at_web(node)
    spool = node.web.rootfs / "var/spool/orders/out"
    bodies = [b"%03d" % number for number in range(MESSAGES)]
    with Receiver(node.legacy, 0x4D2, MESSAGES) as receiver:
        for number in range(0, MESSAGES, 20):
            for body in bodies[number : number + 20]:
                (spool / f".{body.decode()}").write_bytes(body)
                (spool / f".{body.decode()}").rename(spool / body.decode())
            if number:
                node.pod.stop(daemon)
                wait_dead(pid)
                daemon = node.pod.start("nsbridged")
                pid = node.pod.pid(daemon)
        assert receiver.messages() == [Sent(1, body) for body in bodies]
    wait_until(node.runs, "both agents run again")
    probe = node.containerd.ctr(
        "tasks",
        "exec",
        "--exec-id=probe",
        daemon,
        *_container("nsbridged")["livenessProbe"]["exec"]["command"],
        namespace=CRI_NAMESPACE,
        check=False,
    )
    assert probe.returncode == 0, probe


def _look_at_web(node: Node) -> None:
    """Start the container `web`, on a free port: it has no rights at all, and shows health and metrics."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [re.sub(r"^0\.0\.0\.0:\d+$", f"0.0.0.0:{port}", word) for word in _container("web")["command"]]
    web = node.pod.start("web", command=command)
    status = Path(f"/proc/{node.pod.pid(web)}/status").read_text(encoding="utf-8")
    assert re.findall(r"CapBnd:\s*(\w+)", status) == ["0" * 16]
    assert re.findall(r"Uid:\s*(\d+)", status) == [str(_container("web")["securityContext"]["runAsUser"])]
    wait_until(lambda: _got(port, "/healthz") == (200, "ok\n"), "the health is shown")
    states = [line for line in _got(port, "/metrics")[1].splitlines() if line.startswith("nsbridge_agent_state{")]
    running = [line for line in states if line.endswith(" 1.0")]
    assert len(running) == len(node.states())
    assert all('state="running"' in line.lower() for line in running)
    node.pod.stop(web)


def _got(port: int, path: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except ConnectionError:
        return 0, ""
    finally:
        connection.close()


def _container(name: str) -> dict[str, Any]:
    (spec,) = [each for each in DOCUMENTS if each["kind"] == "DaemonSet"]
    (found,) = [each for each in spec["spec"]["template"]["spec"]["containers"] if each["name"] == name]
    return dict(found)
