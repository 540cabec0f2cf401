"""`nsbridge web`: checks its options, opens its socket, and serves until TERM or INT ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import traceback
from collections.abc import Iterator

import uvicorn

from nsbridge.config.errors import EXIT_OK, NsbridgeError, UsageError
from nsbridge.config.text import escape
from nsbridge.supervisor.cli.commands.parse import Parsed
from nsbridge.supervisor.cli.web import app
from nsbridge.supervisor.cli.web.access import Access, is_loopback
from nsbridge.supervisor.cli.web.daemon import Daemon
from nsbridge.supervisor.cli.web.feed import Feed
from nsbridge.supervisor.cli.web.guard import GuardedProtocol

SHORTEST_TOKEN = 16  # characters
_DESCRIPTORS = 4096  # enough for a flood of connections that wait for their TLS handshake
_GRACE = 2  # seconds to finish answers when it is stopped
_BACKLOG = 256


def run(options: Parsed, control: str) -> int:
    """Serve; return the exit code. `control` is the daemon's control socket."""
    host, port = options.listen
    token = _token(options.token_file)
    _check(options, host, token)
    feed = Feed(Daemon(control))
    loopback = is_loopback(host)
    site = Access(app.create(feed), token, any_host=not loopback)
    _log_bugs()
    config = uvicorn.Config(
        site,
        http=GuardedProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_GRACE,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )
    _load(config, options)
    _raise_limit()
    with _listening(host, port) as listener:
        scheme = "https" if options.tls_cert else "http"
        where = f"[{host}]" if ":" in host else host
        _say(f"{scheme}://{where}:{listener.getsockname()[1]}/ (of the daemon at {control})")
        if not loopback and token is None:
            _say("--insecure: every host that reaches this address can read names, reasons and the log")
        asyncio.run(_serve(_Server(config), feed, listener))
    return EXIT_OK


class _Server(uvicorn.Server):
    """A server that leaves signals to `_serve`: uvicorn's would end the process by the signal, not with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def _serve(server: _Server, feed: Feed, listener: socket.socket) -> None:
    def end() -> None:
        server.should_exit = True
        feed.end()  # a live stream would last until the grace is over

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    await server.serve(sockets=[listener])


def _check(options: Parsed, host: str, token: str | None) -> None:
    """Raise UsageError if other hosts could read without a token, unless --insecure allows it."""
    if bool(options.tls_cert) != bool(options.tls_key):
        raise UsageError("web: --tls-cert and --tls-key go together")
    if options.insecure and token is not None:
        raise UsageError("web: --insecure and --token-file exclude each other")
    if is_loopback(host) or options.insecure:
        return
    missing = [
        name for name, has in (("--tls-cert and --tls-key", options.tls_cert), ("--token-file", token)) if not has
    ]
    if missing:
        raise UsageError(
            f"web: other hosts may reach {host}, so it needs {' and '.join(missing)}; "
            "--insecure serves everybody without, over HTTP"
        )


def _token(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with open(path, encoding="ascii") as file:  # noqa: PTH123
            token = file.read(4096).strip()
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise UsageError(f"web: --token-file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"web: --token-file {path}: a token is ASCII: openssl rand -hex 32 makes one") from None
    if mode & 0o004:
        raise UsageError(f"web: --token-file {path}: every user can read it: chmod o-r {path}")
    if len(token) < SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise UsageError(
            f"web: --token-file {path}: a token is one word of at least {SHORTEST_TOKEN} characters: "
            "openssl rand -hex 32 makes one"
        )
    return token


def _load(config: uvicorn.Config, options: Parsed) -> None:
    """Read the TLS files. Raises UsageError."""
    try:
        config.load()
    except ssl.SSLError as error:
        raise UsageError(f"web: --tls-cert {options.tls_cert}, --tls-key {options.tls_key}: {error.reason}") from None
    except OSError as error:
        files = f"{options.tls_cert} or {options.tls_key}"
        raise UsageError(f"web: --tls-cert, --tls-key: {files}: {error.strerror}") from None


def _raise_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield the socket, bound: an error of the address is one line. Raises NsbridgeError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UsageError(f"web: --listen {host}: {error.strerror}") from None
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise NsbridgeError(f"web: cannot listen on {host} port {port}: {error.strerror}; see --listen") from None
        yield listener


class _OneLine(logging.Formatter):
    """Formats a record without a traceback: the place of a bug is enough, and requests may be repeated."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return f"nsbridge web: {escape(record.getMessage().strip())}"
        trace = traceback.extract_tb(error.__traceback__)
        where = f" at {trace[-1].filename}:{trace[-1].lineno}" if trace else ""
        return escape(f"nsbridge web: bug: {type(error).__name__}: {error}{where}")


def _log_bugs() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        logger.addHandler(handler)


def _say(line: str) -> None:
    sys.stderr.write(f"nsbridge web: {line}\n")
    sys.stderr.flush()
