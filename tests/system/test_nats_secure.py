"""The `nats` endpoint with TLS, nkeys and .creds files; the servers allow only what examples/two-hosts gives a host."""

from __future__ import annotations

import base64
import importlib
import json
import os
import re
import ssl
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Factory
from tests.system.nats_servers import NatsClient, NatsServer, free_ports
from tests.system.nsbridged import Nsbridged
from tests.system.room import run, wait_until
from tests.system.test_nats import delivered, put_into_spool, wait_for_detail

nkeys: Any = importlib.import_module("nkeys")  # it has no types
EXAMPLE = Path(__file__).parents[2] / "examples/two-hosts/nats-server.conf"
BODIES = [b"%d" % number for number in range(300)]


class Key:
    """A key pair of NATS."""

    def __init__(self, prefix: int) -> None:
        self.seed = bytes(nkeys.encode_seed(os.urandom(32), prefix))
        self.pair = nkeys.from_seed(bytearray(self.seed))
        self.public = self.pair.public_key.decode()

    def jwt(self, subject: str, about: dict[str, object]) -> str:
        """Return a JSON web token about a subject, signed by this key, as NATS has them."""
        claims = {
            "jti": "x",
            "iat": 1,
            "iss": self.public,
            "name": "n",
            "sub": subject,
            "nats": {"version": 2, **about},
        }
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        text = ".".join(_b64(json.dumps(part).encode()) for part in (head, claims))
        return f"{text}.{_b64(self.pair.sign(text.encode()))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def route(container: str, url: str, more: str) -> str:
    """Return host 1's route, with a spool."""
    return (
        f'[route.n.agent.box]\ncontainer = "{container}"\nspool = {{ out = "/srv/out", in = "/srv/in" }}\n'
        f'[route.n.agent.far]\ncontainer = "host"\n[route.n.agent.far.nats]\nservers = ["{url}"]\n'
        'in = { subject = "site.to-b" }\nout = { stream = "TO_A", subject = "site.to-a", durable = "host1" }\n' + more
    )


def certificates(where: Path) -> None:
    """Make two authorities, and a certificate of localhost that the first one signs."""
    where.mkdir()
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes"]
    for name in ("ca", "other"):
        run([*new, "-x509", "-keyout", f"{where}/{name}.key", "-out", f"{where}/{name}.pem", "-subj", f"/CN={name}"])
    run([*new, "-keyout", f"{where}/server.key", "-out", f"{where}/request", "-subj", "/CN=s"])
    (where / "ext").write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\n")
    signed = ["-CA", f"{where}/ca.pem", "-CAkey", f"{where}/ca.key", "-CAcreateserial", "-extfile", f"{where}/ext"]
    run(["openssl", "x509", "-req", "-in", f"{where}/request", "-out", f"{where}/server.pem", *signed])


def example(where: Path, host: Key) -> str:
    """Return the example's configuration of a server, for this machine, with an operator who makes streams."""
    text = EXAMPLE.read_text(encoding="utf-8")
    text = re.sub(r"(?ms)^(server_name|listen): .*?$|^(jetstream|cluster) \{.*?^\}", "", text)
    text = text.replace("/etc/nats/", f"{where}/").replace("HOST1_PUBLIC_NKEY", host.public)
    other = Key(nkeys.PREFIX_BYTE_USER).public
    return text.replace("HOST2_PUBLIC_NKEY", other).replace("users = [", 'users = [ { user: "op", password: "op" }')


def test_example_with_tls_and_nkeys(tmp_path: Path, unshare_container: Factory) -> None:
    """A wrong key is reported and read again; with another authority nothing is sent."""
    where, host = tmp_path / "tls", Key(nkeys.PREFIX_BYTE_USER)
    certificates(where)
    server = NatsServer(tmp_path, "nats1", free_ports(1)[0], example(where, host))
    trusted = ssl.create_default_context(cafile=str(where / "ca.pem"))
    key, box = tmp_path / "host1.nk", unshare_container()
    key.write_bytes(Key(nkeys.PREFIX_BYTE_USER).seed)
    key.chmod(0o600)
    url = f"tls://localhost:{server.port}"
    server.start()
    try:
        server.wait()
        with NatsClient(url, user="op", password="op", tls=trusted) as client:
            client.add_stream("TO_A", ["site.to-a"])
            client.add_stream("TO_B", ["site.to-b"])
            more = f'credentials = "{key}"\ntls = {{ ca = "{where}/ca.pem" }}\n'
            with Nsbridged(tmp_path, route(box.spec, url, more)) as daemon:
                wait_for_detail(daemon, "Authorization Violation", "credentials are read again")
                key.write_bytes(host.seed + b"\n")
                daemon.wait_for("RUNNING")
                put_into_spool(box.rootfs / "srv/out", BODIES)
                client.publish("site.to-a", BODIES)
                delivered(daemon, "n:box", len(BODIES))
                delivered(daemon, "n:far", len(BODIES))
                assert client.bodies("TO_B") == BODIES
                assert host.seed not in Path(f"/proc/{daemon.pid}/cmdline").read_bytes()
            daemon.config.write_text(daemon.config.read_text().replace("ca.pem", "other.pem"))
            with_other = Nsbridged(tmp_path, route(box.spec, url, more.replace("ca.pem", "other.pem")))
            with with_other as daemon:
                wait_for_detail(daemon, "certificate verify failed")
    finally:
        server.kill()


def test_server_without_tls_is_refused_where_tls_is_configured(tmp_path: Path, unshare_container: Factory) -> None:
    box = unshare_container()
    server = NatsServer(tmp_path, "plain", free_ports(1)[0])
    server.start()
    try:
        server.wait()
        with Nsbridged(tmp_path, route(box.spec, f"tls://127.0.0.1:{server.port}", "")) as daemon:
            wait_for_detail(daemon, "the server does not speak TLS, which the configuration asks for")
    finally:
        server.kill()


def test_creds_file_of_an_operator(tmp_path: Path, unshare_container: Factory) -> None:
    """JSON web tokens: an operator signs an account, the account a user; the user's token and seed are in one file."""
    operator, system, account = (Key(one) for one in (nkeys.PREFIX_BYTE_OPERATOR, *[nkeys.PREFIX_BYTE_ACCOUNT] * 2))
    user = Key(nkeys.PREFIX_BYTE_USER)
    most = dict.fromkeys(("subs", "conn", "leaf", "imports", "exports", "data", "payload"), -1)
    stored = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    tokens = {
        system.public: operator.jwt(system.public, {"type": "account", "limits": {**most, "wildcards": True}}),
        account.public: operator.jwt(
            account.public, {"type": "account", "limits": {**most, **stored, "wildcards": True}}
        ),
    }
    preload = ", ".join(f"{public}: {token}" for public, token in tokens.items())
    own = operator.jwt(operator.public, {"type": "operator"})
    more = f"operator: {own}\nsystem_account: {system.public}\nresolver: MEMORY\nresolver_preload: {{ {preload} }}\n"
    creds, box = tmp_path / "user.creds", unshare_container()
    token = account.jwt(user.public, {"type": "user", "subs": -1, "data": -1, "payload": -1})
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    creds.chmod(0o600)
    server = NatsServer(tmp_path, "operated", free_ports(1)[0], more)
    server.start()
    try:
        server.wait()
        with NatsClient(server.url, user_credentials=str(creds)) as client:
            client.add_stream("TO_A", ["site.to-a"])
            client.add_stream("TO_B", ["site.to-b"])
            with Nsbridged(tmp_path, route(box.spec, server.url, f'credentials = "{creds}"\n')) as daemon:
                daemon.wait_for("RUNNING")
                put_into_spool(box.rootfs / "srv/out", BODIES[:20])
                delivered(daemon, "n:box", 20)
                assert client.bodies("TO_B") == BODIES[:20]
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("text", "why"),
    [("hello\n", "is neither a .creds file nor the seed"), ("SUA\nSUB\n", "is neither a .creds file nor the seed")],
)
def test_file_of_no_credentials_is_refused(tmp_path: Path, unshare_container: Factory, text: str, why: str) -> None:
    box, creds = unshare_container(), tmp_path / "c"
    creds.write_text(text)
    creds.chmod(0o600)
    with Nsbridged(tmp_path, route(box.spec, "nats://127.0.0.1:1", f'credentials = "{creds}"\n')) as daemon:
        wait_until(lambda: daemon.agents()["n:far"]["state"] == "FATAL", "it is FATAL")
        assert why in daemon.agents()["n:far"]["detail"]


def test_file_that_others_may_write_is_refused(tmp_path: Path, unshare_container: Factory) -> None:
    box, creds = unshare_container(), tmp_path / "c"
    creds.write_text("SUA\n")
    creds.chmod(0o666)
    with Nsbridged(tmp_path, route(box.spec, "nats://127.0.0.1:1", f'credentials = "{creds}"\n')) as daemon:
        wait_until(lambda: daemon.agents()["n:far"]["state"] == "FATAL", "it is FATAL")
        assert "everybody may write it" in daemon.agents()["n:far"]["detail"]


def test_seed_that_every_user_may_read_is_refused(tmp_path: Path, unshare_container: Factory) -> None:
    box, creds = unshare_container(), tmp_path / "c"
    creds.write_bytes(Key(nkeys.PREFIX_BYTE_USER).seed)
    creds.chmod(0o644)
    with Nsbridged(tmp_path, route(box.spec, "nats://127.0.0.1:1", f'credentials = "{creds}"\n')) as daemon:
        why = f"credentials {creds}: every user of this host can read it (mode 0644), and it is secret"
        wait_until(lambda: why in daemon.agents()["n:far"]["detail"], "it is shown")
        creds.chmod(0o640)
        wait_until(lambda: "nats://127.0.0.1:1: " in daemon.agents()["n:far"]["detail"], "it is read then")
