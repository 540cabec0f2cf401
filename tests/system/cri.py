"""A client of the Container Runtime Interface, as the kubelet is one: pods of containerd's CRI plugin for tests.

grpcio runs in a process of its own, which this module starts (`python -m tests.system.cri SOCKET`): it starts threads,
and the tests fork. The few messages are encoded here:
the numbers are those of kubernetes/cri-api, pkg/apis/runtime/v1/api.proto.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVICE = "/runtime.v1.RuntimeService/"
LIMIT = 60.0  # seconds for one call
_NODE = 2  # NamespaceMode: the host's
_RUNTIME_DEFAULT = 0  # SecurityProfile.ProfileType
_OUR_IMAGE = "docker.io/library/nsb-busybox:1"

Single = int | str | bytes | Mapping[int, "Value"]
Value = Single | list[Single]


@dataclass(frozen=True)
class Pod:
    """A pod's sandbox, with the host's network: there is no CNI here."""

    name: str
    namespace: str = "default"
    host_pid: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict)

    def message(self) -> dict[int, Value]:
        """Return it as PodSandboxConfig."""
        return {
            1: {1: self.name, 2: f"uid-{self.namespace}-{self.name}", 3: self.namespace},
            7: [{1: key, 2: value} for key, value in self.annotations.items()],
            8: {1: "", 2: {1: self.namespaces()}},
        }

    def namespaces(self) -> dict[int, Value]:
        """Return it as NamespaceOption."""
        return {1: _NODE, 2: _NODE if self.host_pid else 0}


@dataclass(frozen=True)
class PodContainer:
    """A container of a pod."""

    name: str
    argv: Sequence[str]
    mounts: Mapping[str, str | Path] = field(default_factory=dict)  # directories of the host by path inside
    readonly_mounts: Mapping[str, str | Path] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    capabilities: Sequence[str] = ()  # added, without CAP_
    drops: Sequence[str] = ()
    readonly_root: bool = False
    user: tuple[int, int] | None = None  # the image's, if there is none
    seccomp: bool = False  # the runtime's default profile; none otherwise
    no_new_privileges: bool = False
    image: str = _OUR_IMAGE

    def message(self, pod: Pod, attempt: int) -> dict[int, Value]:
        """Return it as ContainerConfig."""
        mounts: list[Single] = [{1: inside, 2: str(path)} for inside, path in self.mounts.items()]
        mounts += [{1: inside, 2: str(path), 3: 1} for inside, path in self.readonly_mounts.items()]
        security: dict[int, Value] = {
            1: {1: list(self.capabilities), 2: list(self.drops)},
            3: pod.namespaces(),
            7: int(self.readonly_root),
            11: int(self.no_new_privileges),
        }
        if self.user is not None:
            security |= {5: {1: self.user[0]}, 12: {1: self.user[1]}}
        if self.seccomp:
            security[15] = {1: _RUNTIME_DEFAULT}
        return {
            1: {1: self.name, 2: attempt},
            2: {1: self.image},
            3: list(self.argv),
            6: [{1: key, 2: value} for key, value in self.environment.items()],
            7: mounts,
            15: {2: security},
        }


class CriError(RuntimeError):
    """The runtime refused a call."""


class Cri:
    """The client."""

    def __init__(self, socket: Path) -> None:
        command = [sys.executable, "-m", "tests.system.cri", str(socket)]
        self._helper = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run_pod(self, pod: Pod) -> str:
        """Run a pod's sandbox; return its id."""
        return self._call("RunPodSandbox", {1: pod.message()})

    def create(self, pod_id: str, pod: Pod, container: PodContainer, attempt: int = 0) -> str:
        """Create a container in a pod; return its id."""
        return self._call("CreateContainer", {1: pod_id, 2: container.message(pod, attempt), 3: pod.message()})

    def start(self, container_id: str) -> None:
        """Start a created container."""
        self._call("StartContainer", {1: container_id})

    def stop(self, container_id: str, grace: int = 1) -> None:
        """Stop a container: SIGTERM, SIGKILL after the seconds of grace."""
        self._call("StopContainer", {1: container_id, 2: grace})

    def remove(self, container_id: str) -> None:
        """Remove a container; it is killed if it runs."""
        self._call("RemoveContainer", {1: container_id})

    def remove_pod(self, pod_id: str) -> None:
        """Stop and remove a pod with all its containers."""
        self._call("StopPodSandbox", {1: pod_id})
        self._call("RemovePodSandbox", {1: pod_id})

    def close(self) -> None:
        """End the helper."""
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        self._helper.stdin.close()
        self._helper.stdout.close()
        self._helper.wait(LIMIT)

    def _call(self, method: str, request: Mapping[int, Value]) -> str:
        """Call; return the string that the answer's field 1 holds, if there is one."""
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        self._helper.stdin.write(json.dumps([method, encode(request).hex()]).encode() + b"\n")
        self._helper.stdin.flush()
        answer, error = json.loads(self._helper.stdout.readline())
        if error:
            raise CriError(f"{method}: {error}")
        return first_string(bytes.fromhex(answer))


def encode(message: Mapping[int, Value]) -> bytes:
    """Return a message in protobuf's wire format (protobuf.dev/programming-guides/encoding)."""
    out = b""
    for number, value in message.items():
        for each in value if isinstance(value, list) else [value]:
            out += _field(number, each)
    return out


def _field(number: int, value: Single) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    text = value.encode() if isinstance(value, str) else value
    body = encode(text) if isinstance(text, Mapping) else text
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def first_string(answer: bytes) -> str:
    """Return field 1 of an answer, an id (shorter than 128 bytes); empty if the answer is."""
    if not answer:
        return ""
    assert answer[0] == 1 << 3 | 2, answer
    return answer[2 : 2 + answer[1]].decode()


def _serve(socket: str) -> None:
    """Run the helper: a call for each line on standard input."""
    import grpc  # noqa: PLC0415  (only in this process)

    with grpc.insecure_channel(f"unix:{socket}") as channel:
        for line in sys.stdin:
            method, request = json.loads(line)
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SERVICE + method)
            try:
                answer = call(bytes.fromhex(request), timeout=LIMIT)
                said = [answer.hex(), ""]
            except grpc.RpcError as error:
                said = ["", f"{error.code().name}: {error.details()}"]
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
