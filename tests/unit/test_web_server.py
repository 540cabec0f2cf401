"""`nsbridge web` beside a fake daemon: its answers, who may read, and command lines that it refuses."""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsbridge.supervisor.cli import nsbridge as cli
from tests.control_fake import HEALTHY, FakeApi, agent, daemon, flow, status_document
from tests.web_process import Web

TOKEN = "correct-horse-battery-staple"
LOG = {"time": "2026-11-29T07:00:00.125Z", "level": "warning", "name": "orders:web", "message": "the disk is full"}
EVENT = {"time": "2026-11-29T07:00:00.125Z", "name": "orders:web", "event": "state", "from": "RUNNING", "to": "BACKOFF"}


@pytest.fixture(scope="module")
def control() -> Iterator[str]:
    with daemon() as path:
        yield path


@pytest.fixture(scope="module")
def web(control: str) -> Iterator[Web]:
    with Web(control) as process:
        yield process


def broken(api: FakeApi) -> None:
    api.status = status_document(
        agent("orders:web", state="FATAL", detail="no such directory"),
        agent("orders:legacy", state="STOPPED", wanted=False),
        flows=(flow("orders:web", "orders:legacy"),),
    )
    api.records = [{**EVENT, **LOG, "detail": "killed"}]


# -- answers


def test_health_is_200_while_all_runs(web: Web) -> None:
    assert web.get("/healthz")[::2] == (200, b"ok\n")


def test_health_names_what_does_not_run() -> None:
    with daemon(broken) as control, Web(control) as web:
        assert web.get("/healthz")[::2] == (503, b"orders:web is FATAL: no such directory\n")


def test_metrics_come_in_both_forms(web: Web) -> None:
    plain = web.get("/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "nsbridge_up 1.0" in plain.text
    opened = web.get("/metrics", {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
    assert opened.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert opened.text.endswith("# EOF\n")


def test_status_is_what_nsbridgectl_prints(web: Web, control: str) -> None:
    command = Path(sys.executable).with_name("nsbridgectl")
    printed = subprocess.run([command, "-s", control, "status", "--json"], capture_output=True, check=False)
    assert web.get("/api/status").json == json.loads(printed.stdout)


def test_nsbridgectl_prints_the_same_metrics(web: Web, control: str) -> None:
    command = Path(sys.executable).with_name("nsbridgectl")
    printed = subprocess.run([command, "-s", control, "metrics"], capture_output=True, text=True, check=True)

    def names(text: str) -> list[str]:
        return [line.rpartition(" ")[0] for line in text.splitlines()]

    assert names(printed.stdout) == names(web.get("/metrics").text)


def test_promtool_finds_nothing_to_object_to(control: str) -> None:
    command = Path(sys.executable).with_name("nsbridgectl")
    text = subprocess.run([command, "-s", control, "metrics"], capture_output=True, check=True).stdout
    assert b"nsbridge_flow_refused_files{" in text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_nsbridgectl_metrics_of_no_daemon_is_down(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("nsbridgectl")
    done = subprocess.run([command, "-s", tmp_path / "none", "metrics"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (4, "nsbridge_up 0.0")
    assert "no such socket" in done.stderr


def test_page_has_agents_events_and_log_without_script() -> None:
    wanted, text = {"orders:web", "FATAL", "no such directory", "the disk is full", "07:00:00.125", 'content="5"'}, ""
    with daemon(broken) as control, Web(control) as web:
        deadline = time.monotonic() + 30.0
        while (missing := [words for words in wanted if words not in text]) and time.monotonic() < deadline:
            text = web.get("/").text  # it follows the daemon's log in its own time
    assert not missing


def test_page_is_filtered_and_sorted_without_script(web: Web) -> None:
    assert "orders:web" in web.get("/?q=orders&sort=pending").text
    assert "No agent is chosen" in web.get("/?q=nothing").text
    assert "No agent is chosen" in web.get("/?trouble=1").text
    assert web.get("/?sort=__class__&q=%00%ff").status == 200


def test_agent_s_page_has_what_inspect_shows(web: Web) -> None:
    text = web.get("/agent/orders:web").text
    for words in ("docker:web", "confined by", "seccomp (filter)", "12,031 delivered"):
        assert words in text


@pytest.mark.parametrize(("path", "status"), [("/agent/no:such", 404), ("/nothing", 404), ("/static/../app.py", 404)])
def test_what_is_not_there_is_404(web: Web, path: str, status: int) -> None:
    assert web.get(path).status == status


def test_live_stream_begins_with_the_daemon_s_state(web: Web) -> None:
    with web.events() as events:
        kind, data = next(events)
    assert kind == "daemon"
    assert data["up"]
    assert data["version"] == HEALTHY["daemon"]["version"]


def test_daemon_that_is_away_is_reported_everywhere(tmp_path: Path) -> None:
    with Web(tmp_path / "none") as web:
        assert "no such socket" in web.get("/healthz").text
        assert web.get("/healthz").status == 503
        assert web.get("/api/status").status == 503
        assert "no such socket" in web.get("/api/status").json["error"]
        assert [line for line in web.get("/metrics").text.splitlines() if line[0] != "#"] == ["nsbridge_up 0.0"]
        assert "The daemon does not answer" in web.get("/").text
        assert "no such socket" in web.get("/agent/orders:web").text


def test_daemon_that_hangs_delays_no_answer_for_long() -> None:
    def hang(api: FakeApi) -> None:
        setattr(api, "call", lambda _method, _params, _answer: None)  # noqa: B010

    with daemon(hang) as control, Web(control) as web:
        began = time.monotonic()
        assert "did not answer overview within 3 s" in web.get("/healthz").text
        assert "nsbridge_up 0.0" in web.get("/metrics").text
        assert time.monotonic() - began < 12


def test_daemon_of_another_version_is_an_error_of_one_line() -> None:
    def other(api: FakeApi) -> None:
        api.status = {"routes": [], "daemon": []}

    with daemon(other) as control, Web(control) as web:
        answer = web.get("/healthz")
        assert answer.status == 503
        assert len(answer.text.splitlines()) == 1


def test_process_ends_with_0_though_a_page_is_live(control: str) -> None:
    with Web(control) as web, web.events() as events:
        next(events)
        os.kill(web.pid, signal.SIGINT)  # SIGTERM: the test of --insecure
        assert web.process is not None
        assert web.process.wait(10) == 0


# -- who may read


@pytest.mark.parametrize(
    ("headers", "method", "status"),
    [
        ({"Host": "127.0.0.1:1"}, "GET", 200),
        ({"Host": "localhost"}, "GET", 200),
        ({"Host": "[::1]:9847"}, "GET", 200),
        ({"Host": "evil.example"}, "GET", 421),
        ({"Host": "127.0.0.1.evil.example"}, "GET", 421),
        ({}, "POST", 405),
        ({}, "DELETE", 405),
        ({}, "HEAD", 200),
        ({"Content-Length": "5"}, "GET", 413),
        ({"Transfer-Encoding": "chunked"}, "GET", 413),
    ],
)
def test_only_harmless_requests_of_this_host_are_served(
    web: Web, headers: dict[str, str], method: str, status: int
) -> None:
    assert web.get("/healthz", headers, method).status == status


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/agent/orders:web", "/nothing", "/static/nsbridge.js"])
def test_every_answer_has_the_headers_that_keep_a_page_in(web: Web, path: str) -> None:
    headers = web.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def guarded(control: str, token_file: Path) -> Iterator[Web]:
    with Web(control, "--token-file", str(token_file)) as process:
        yield process


def basic(words: str) -> str:
    return f"Basic {base64.b64encode(words.encode()).decode()}"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (basic(f"operator:{TOKEN}"), 200),
        (None, 401),
        ("Bearer wrong", 401),
        (f"Bearer {TOKEN}x", 401),
        ("Bearer", 401),
        ("Basic !!", 401),
        (basic("operator"), 401),
        (f"Digest {TOKEN}", 401),
        ("Bearer \xfc", 401),
    ],
)
def test_token_is_asked_for(guarded: Web, given: str | None, status: int) -> None:
    for path in ("/", "/metrics", "/healthz", "/static/nsbridge.css"):
        answer = guarded.get(path, {"Authorization": given} if given else {})
        assert answer.status == status
        assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "cert.pem", directory / "key.pem"
    made: list[str | Path] = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ]
    files = ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*made, *files], capture_output=True, check=True)
    return str(cert), str(key)


def test_other_addresses_are_served_with_tls_and_token(
    control: str, token_file: Path, certificate: tuple[str, str]
) -> None:
    cert, key = certificate
    tls = ("--tls-cert", cert, "--tls-key", key)
    with Web(control, "--listen", "0.0.0.0:0", "--token-file", str(token_file), *tls) as web:
        with pytest.raises(ssl.SSLError), web.connection() as connection:
            connection.sock = ssl.create_default_context().wrap_socket(_connected(web), server_hostname="localhost")
        assert web.get("/healthz").status == 401
        given = {"Authorization": f"Bearer {TOKEN}", "Host": "bridge.example"}
        assert web.get("/healthz", given).status == 200


def _connected(web: Web) -> Any:
    import socket  # noqa: PLC0415

    return socket.create_connection(("127.0.0.1", web.port), 10)


def test_insecure_serves_everybody_and_warns(control: str) -> None:
    with Web(control, "--listen", "0.0.0.0:0", "--insecure") as web:
        assert web.get("/healthz", {"Host": "bridge.example"}).status == 200
        code, err = web.stop()
    assert code == 0
    assert "every host that reaches this address can read" in err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--listen", "0.0.0.0:0"], "it needs --tls-cert and --tls-key and --token-file; --insecure serves everybody"),
        (["--listen", "[::]:0"], "other hosts may reach ::"),
        (["--listen", "9847"], "it must be HOST:PORT"),
        (["--listen", "::1:9847"], "stands in brackets"),
        (["--listen", "127.0.0.1:70000"], "it must be HOST:PORT"),
        (["--listen", "no.such.host.invalid:1", "--insecure"], "--listen no.such.host.invalid"),
        (["--tls-cert", "/nothing"], "--tls-cert and --tls-key go together"),
        (["--tls-cert", "/nothing", "--tls-key", "/nothing"], "/nothing or /nothing: No such file"),
        (["--token-file", "/nothing"], "--token-file /nothing: No such file"),
        (["--token-file", "/etc/hostname"], "every user can read it: chmod o-r"),
        (["--token-file", "/dev/null"], "every user can read it"),
    ],
)
def test_wrong_command_line_is_an_error_of_one_line(
    options: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["web", "-s", "/nowhere", *options]) == 2
    err = capsys.readouterr().err
    assert error in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("content", ["short", "two words of some length", "schl\xfcssel-aus-umlauten"])
def test_weak_token_is_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o600)
    assert cli.main(["web", "-s", "/nowhere", "--token-file", str(path)]) == 2
    assert "openssl rand -hex 32 makes one" in capsys.readouterr().err


def test_address_in_use_is_an_error_of_one_line(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["web", "-s", "/nowhere", "--listen", f"127.0.0.1:{web.port}"]) == 1
    error = f"cannot listen on 127.0.0.1 port {web.port}: Address already in use; see --listen"
    assert capsys.readouterr().err == f"nsbridge: web: {error}\n"


@pytest.mark.parametrize(("program", "words"), [("nsbridge", ["web"]), ("nsbridgectl", ["metrics"])])
def test_missing_packages_are_named_with_their_extra(tmp_path: Path, program: str, words: list[str]) -> None:
    """A module that cannot be found stands in their place."""
    for name in ("prometheus_client", "uvicorn"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no', name={name!r})")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", f"nsbridge.supervisor.cli.{program}", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{program}: {words[0]}: ")
    assert done.stderr.endswith("is not installed: pip install 'nsbridge[web]'\n")
