"""A real control server with a small hand-written supervisor behind it, driven by the test itself: no threads."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nsbridge.agents.loop import Loop
from nsbridge.config.errors import NoSuchNameError, NsbridgeError, UsageError
from nsbridge.config.schema import ControlConfig
from nsbridge.supervisor.cli.client import ControlClient
from nsbridge.supervisor.control.answer import Answer
from nsbridge.supervisor.control.server import ControlServer

_COUNTERS = ("delivered", "bytes", "pending", "repeats_dropped", "in_doubt")
NO_ANSWER = object()  # as a method's result: it never comes
DEADLINE = 20.0  # seconds a test waits for what must happen


def agent(name: str, **facts: object) -> dict[str, Any]:
    return {
        "name": name,
        "container": "docker:web",
        "namespace": "mnt",
        "ns_inode": 4026532177,
        "endpoint": "spool",
        "state": "RUNNING",
        "phase": "idle",
        "pid": 4711,
        "container_pid": 4242,
        "uptime_s": 7391.5,
        "restarts": 0,
        "last_exit": None,
        "retry_in_s": None,
        "detail": "",
        "wanted": True,
    } | facts


def flow(source: str, sink: str, **facts: object) -> dict[str, Any]:
    counters = dict.fromkeys((*_COUNTERS, "dead", "dead_letters", "refused", "refused_now", "waiting_files"), 0)
    return {"from": source, "to": sink} | counters | facts


def status_document(*agents: dict[str, Any], flows: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {
        "schema": 1,
        "daemon": {"pid": 1, "version": "0.2.0", "uptime_s": 1.0, "config": "/etc/nsbridge/nsbridge.toml"},
        "routes": [{"name": "orders", "delivery": "exactly-once", "agents": list(agents), "flows": list(flows)}],
    }


_OVERVIEW = ("name", "container", "endpoint", "state", "wanted", "phase", "detail", "pid", "senders", "restarts")
_MORE = ("start_time", "retry_in_s", "memory", "descriptors", "blocked_s", "blocked_long")


def overview_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of `overview` that goes with the answer of `status`."""
    agents = [agent for route in document["routes"] for agent in route["agents"]]
    flows = [flow for route in document["routes"] for flow in route["flows"]]
    keys = (*_OVERVIEW, *_MORE)
    return {
        "schema": 1,
        "daemon": document["daemon"],
        "agent_keys": keys,
        "agents": [[agent.get(key, [] if key == "senders" else None) for key in keys] for agent in agents],
        "flow_keys": list(flows[0]) if flows else [],
        "flows": [list(flow.values()) for flow in flows],
    }


def process(at_s: float, **facts: object) -> dict[str, Any]:
    """Return the entry of `top` about an agent's processes, or the daemon's."""
    return {"pids": [4711], "at_s": at_s, "cpu_s": 0.0, "rss": 20 << 20, "own": 10 << 20} | facts


def top_answer(
    clock: float,
    agents: tuple[dict[str, Any], ...],
    flows: tuple[dict[str, Any], ...],
    processes: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Return the answer of `top` at `clock`."""
    measured = {"clock_s": clock, "daemon_process": process(clock), "processes": processes}
    return status_document(*agents, flows=flows) | measured


HEALTHY = status_document(
    agent("orders:web"),
    agent("orders:legacy", container="runc:legacy", namespace="ipc", endpoint="queue"),
    flows=(
        flow("orders:web", "orders:legacy", delivered=12031, pending=2),
        flow("orders:legacy", "orders:web", delivered=12029),
    ),
)
LETTER = {
    "id": "orders:legacy/00000000000000aa-12",
    "agent": "orders:legacy",
    "epoch": 0xAA,
    "seq": 12,
    "time": "2026-11-23T19:00:00Z",
    "bytes": 8193,
    "type": 1,
    "where": "queue 0x4d2",
    "why": "too long",
}


def inspected(**facts: object) -> dict[str, Any]:
    """Return the answer of `inspect` about an agent that has a process."""
    process: dict[str, Any] = {
        "pid": 4711,
        "ppid": 4242,
        "status": "sleeping",
        "uids": {"real": 1000, "effective": 1000, "saved": 1000},
        "gids": {"real": 1000, "effective": 1000, "saved": 0},
        "threads": 1,
        "uptime_s": 3661.5,
        "memory": {"rss": 26_500_000, "pss": 7_000_000, "own": 5_900_000, "swap": 0},
        "cpu": {"user_s": 1.5, "system_s": 0.5, "percent": 0.05},
        "descriptors": {"count": 2, "open": [{"fd": 0, "target": "/dev/null"}, {"fd": 3, "target": "/x\x1b[2J"}]},
        "capabilities": {"effective": [], "bounding": []},
        "seccomp": "filter",
        "no_new_privs": True,
        "namespaces": {
            "ipc": {"inode": 11, "host": "different", "container": "same"},
            "mnt": {"inode": 12, "host": "same", "container": "different"},
            "net": {"inode": 13, "host": "same", "container": "same"},
            "pid": {"inode": 14, "host": "same", "container": "different"},
            "pid_for_children": {"inode": 14, "host": "same", "container": "different"},
        },
    }
    about = {"name": "orders:legacy", "state": "RUNNING", "phase": "idle", "detail": "", "landlock": True}
    return {**about, **process, "senders": [{**process, "pid": 4712}], **facts}


def _chosen(document: dict[str, Any], names: object) -> dict[str, Any]:
    """Return the status of everything, of the route orders, or of one agent."""
    if names in (None, [], ["orders"]):
        return document
    routes = [
        route | {"agents": [agent]}
        for route in document["routes"]
        for agent in route["agents"]
        if [agent["name"]] == names
    ]
    if not routes:
        raise NoSuchNameError(f"no route or agent is called {names}")
    return document | {"routes": routes}


class FakeApi:
    """Answers as the supervisor does, with what the test has put into it."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = HEALTHY
        self.changed: list[dict[str, Any]] = []
        self.records: list[dict[str, str]] = []
        self.results: dict[str, object] = {"dead_list": {"letters": [LETTER], "to_be_retried": {}, "more": False}}
        self.calls: list[tuple[str, dict[str, object]]] = []
        self.answers: list[Answer] = []

    def call(self, method: str, params: dict[str, object], answer: Answer) -> None:
        self.calls.append((method, params))
        self.answers.append(answer)
        results: dict[str, object] = {
            "version": {"version": "0.2.0", "pid": 1},
            "shutdown": {},
            "inspect": [inspected()],
        }
        results |= {change: {"agents": self.changed} for change in ("start", "stop", "restart")} | self.results
        if method == "overview":
            answer.result(overview_of(self.status))
        elif method == "status" and "status" not in self.results:
            answer.result(_chosen(self.status, params.get("names")))
        elif method in ("tail", "events"):
            self._stream(params, answer)
        elif method == "bug":
            raise TypeError("what nobody thought of")
        elif method in results:
            result = results[method]
            if result is not NO_ANSWER:
                answer.result(result() if callable(result) else result)
        elif method != "later":
            raise UsageError(f"no such method: {method}")

    def _stream(self, params: dict[str, object], answer: Answer) -> None:
        for record in self.records:
            answer.item(record)
        if not params.get("follow"):
            answer.result({})


class Served:
    """The server, open in a directory of its own that everybody may enter; a context manager."""

    def __init__(self, **config: Any) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nsbridge-control-"))
        self.directory.chmod(0o755)
        self.path = str(self.directory / "control.sock")
        self.api = FakeApi()
        self.notices: list[str] = []
        self.audit: list[str] = []
        self.loop = Loop()
        self.config = ControlConfig(path=self.path, **config)
        self.server = ControlServer(self.loop, self.config, self.api, self.notices.append, self.audit.append)

    def __enter__(self) -> Served:
        try:
            self.server.open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.server.close()
        self.loop.close()
        shutil.rmtree(self.directory)

    def pump(self, until: Callable[[], object]) -> None:
        """Serve until `until()` is truthy."""
        end = time.monotonic() + DEADLINE
        while not until():
            assert time.monotonic() < end, "it has not happened in time"
            self.loop.run_once(0.01)

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `nsbridgectl ARGUMENTS` while it is served."""
        with ctl(*arguments, control=self.path, **options) as process:
            self.pump(lambda: _ended(process))
            stdout, stderr = process.communicate(timeout=DEADLINE)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def as_user(self, uid: int, gid: int, groups: list[int], work: Callable[[], str]) -> str:
        """Return the result of `work` in a forked child with those ids, while it is served."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            answer = "died"
            try:
                os.setgroups(groups)
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                answer = work()
            except BaseException as error:  # noqa: BLE001
                answer = f"{type(error).__name__}: {error}"
            finally:
                os.write(writer, answer.encode())
                os._exit(0)
        os.close(writer)
        with open(reader, encoding="utf-8") as answers:
            try:
                self.pump(lambda: select.select([answers], [], [], 0)[0])
                return answers.read()
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


@contextmanager
def daemon(prepare: Callable[[FakeApi], None] = lambda _api: None) -> Iterator[str]:
    """Yield the path of a control socket that is served by a process of its own, after `prepare`."""
    with Served() as served:
        prepare(served.api)
        pid = os.fork()
        if pid == 0:
            served.loop.run()
            os._exit(0)
        try:
            yield served.path
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def ctl(*arguments: str, control: str, **options: Any) -> subprocess.Popen[str]:
    """Start `nsbridgectl ARGUMENTS`."""
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"NSBRIDGE_CONTROL": control}
    command = [str(Path(sys.executable).with_name("nsbridgectl")), *arguments]
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    settings["env"] = env | options.get("env", {})
    return subprocess.Popen(command, text=True, **settings)


def _ended(process: subprocess.Popen[str]) -> bool:
    return process.poll() is not None


def called(path: str, *methods: str) -> str:
    """Call each method; return `yes` for those this process may call, or the error's exit code."""
    answers = []
    for method in methods:
        try:
            with ControlClient(path) as client:
                client.call(method)
            answers.append("yes")
        except NsbridgeError as error:
            answers.append(str(error.exit_code))
    return " ".join(answers)


class Wire:
    """A raw caller; a context manager."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(served.path)
        self.socket.setblocking(False)
        self.received = b""
        self.ended = False

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send it all while it is served."""
        while data:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                self.served.loop.run_once(0.01)

    def request(self, method: str, request_id: object = 1, **params: object) -> None:
        self.send(json.dumps({"id": request_id, "method": method, "params": params}).encode() + b"\n")

    def answer(self) -> dict[str, Any]:
        """Return the next line."""
        self.served.pump(self.receive)
        line, newline, self.received = self.received.partition(b"\n")
        assert newline, f"the connection ended after {line!r}"
        return dict(json.loads(line))

    def ask(self, method: str, **params: object) -> dict[str, Any]:
        self.request(method, **params)
        return self.answer()

    def is_closed(self) -> bool:
        """True if the server ends the connection, with nothing more to read."""
        self.served.pump(self.receive)
        return self.ended and not self.received

    def receive(self) -> bool:
        """Take what has come; whether there is a line or the end."""
        try:
            chunk = self.socket.recv(1 << 20)
            self.ended = not chunk
        except BlockingIOError:
            chunk = b""
        except ConnectionResetError:
            chunk, self.ended = b"", True
        self.received += chunk
        return self.ended or b"\n" in self.received


def one_line(text: str) -> str:
    """Return an error of nsbridgectl; assert that it is one line."""
    assert text.count("\n") == 1, text
    assert text.startswith("nsbridgectl: ")
    return text
