"""Loads what an agent of the `nats` endpoint needs, before it enters: nats-py, credentials, certificates, addresses.

After the entry the agent reads no file of the host, so it cannot read these again. If the servers refuse the
credentials, or no server was reached for a minute, it enters anew (link.py).
"""

from __future__ import annotations

import codecs
import importlib
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nsbridge.agents.confinement.entry import Gone, RefusedForGood
from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.endpoints.nats.config import NatsEndpoint, host_and_port
from nsbridge.agents.endpoints.nats.connection import Login
from nsbridge.agents.endpoints.nats.guest import GuestLoop
from nsbridge.agents.endpoints.nats.link import Link
from nsbridge.agents.endpoints.nats.sink import NatsSink
from nsbridge.agents.endpoints.nats.source import NatsSource
from nsbridge.agents.journal.sinkjournal import SinkJournal
from nsbridge.agents.journal.sourcejournal import SourceJournal
from nsbridge.config.hostfiles import HostFile, UnusableFileError, open_host_file
from nsbridge.config.schema import InDoubt, Window

codecs.lookup("idna")  # of a server's name in TLS
_MOST = 1 << 20  # bytes of a file that is read here
_USER_JWT = "BEGIN NATS USER JWT"


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that an agent needs of the host."""

    endpoint: NatsEndpoint
    guest: GuestLoop
    login: Login

    def link(self, agent: AgentApi) -> Link:
        """Return what keeps the agent connected."""
        return Link(agent, self.guest, list(self.endpoint.servers), self.login)

    def source(self, agent: AgentApi, journal: SourceJournal, link: Link, window: Window) -> NatsSource:
        """Return the `out` side."""
        return NatsSource(agent, self.endpoint, journal, link, window)

    def sink(self, agent: AgentApi, journal: SinkJournal, link: Link, in_doubt: InDoubt) -> NatsSink:
        """Return the `in` side."""
        return NatsSink(agent, self.endpoint, journal, link, in_doubt)


def prepare(name: str, endpoint: NatsEndpoint) -> Prepared:
    """Read and look up all that the agent needs. Raises Gone, RefusedForGood, UntrustedError."""
    files = {file.key: file for file in endpoint.host_files}
    credentials, nkey = "", ""
    if (file := files.get("credentials")) is not None:
        text = _text(file)
        if _USER_JWT in text:
            credentials = text
        else:
            nkey = _seed(text, file.path)
        _load_nkeys(file.path)
    tls = _tls(files) if endpoint.uses_tls else None
    login = Login(f"nsbridge {name}", tls, credentials, nkey)
    return Prepared(endpoint, GuestLoop(_addresses(endpoint)), login)


def _load_nkeys(path: str) -> None:
    try:
        importlib.import_module("nkeys")  # nats-py imports it when it signs, which is too late
    except ImportError as error:
        raise RefusedForGood(f'{path} needs nkeys ({error}): pip install "nsbridge[nats]"') from None


def _seed(text: str, path: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", "-"))]
    if len(lines) != 1 or not lines[0].startswith("SU"):
        raise RefusedForGood(f"{path} is neither a .creds file nor the seed of a user's nkey (SU…)")
    return lines[0]


def _opened(file: HostFile) -> int:
    try:
        return open_host_file(file)
    except UnusableFileError as error:
        raise Gone(str(error)) from None


def _text(file: HostFile) -> str:
    with os.fdopen(_opened(file), "rb") as opened:
        return opened.read(_MOST).decode("utf-8", "replace")


def _tls(files: Mapping[str, HostFile]) -> ssl.SSLContext:
    """Return what TLS needs. Its files are opened once, and read by their descriptors."""
    try:
        context = ssl.create_default_context(cadata=_text(files["tls.ca"]) if "tls.ca" in files else None)
        if "tls.cert" in files:
            cert, key = _opened(files["tls.cert"]), _opened(files["tls.key"])
            try:
                context.load_cert_chain(f"/proc/self/fd/{cert}", f"/proc/self/fd/{key}", password=_no_password)
            finally:
                os.close(cert)
                os.close(key)
    except (ssl.SSLError, ValueError) as error:
        raise RefusedForGood(f"tls: a file cannot be used: {error}") from None
    return context


def _no_password(*_about: object) -> str:
    raise ValueError("the key has a password, and the agent has no one to ask; take the password off")


def _addresses(endpoint: NatsEndpoint) -> dict[str, list[tuple[Any, ...]]]:
    """Return the addresses of each server. Raises Gone if none has any."""
    found, why = {}, ""
    for url in endpoint.servers:
        host, port = host_and_port(url)
        try:
            found[f"{host}:{port}"] = list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            why = f"{host}: {error.strerror}"
    if not found:
        raise Gone(f"no server of NATS has an address ({why}); they are looked up again")
    return found
