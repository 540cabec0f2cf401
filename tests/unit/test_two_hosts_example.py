"""examples/two-hosts: both configurations are valid, meet each other, and the servers allow what they do."""

from __future__ import annotations

from pathlib import Path

from nsbridge.agents.endpoints.nats.config import NatsEndpoint
from nsbridge.config.load import load
from nsbridge.supervisor.containers import engines

EXAMPLE = Path(__file__).parents[2] / "examples/two-hosts"


def endpoint(host: str) -> NatsEndpoint:
    (route,) = load(str(EXAMPLE / f"{host}.toml")).routes
    assert route.agents[1].container.kind is engines.host.KIND
    found = route.agents[1].endpoint
    assert isinstance(found, NatsEndpoint)
    return found


def test_messages_of_one_host_reach_the_other() -> None:
    one, two = endpoint("host1"), endpoint("host2")
    assert one.in_ is not None
    assert two.in_ is not None
    assert one.out is not None
    assert two.out is not None
    assert (one.in_.subject, two.in_.subject) == (two.out.subject, one.out.subject)
    assert one.servers == two.servers
    assert one.uses_tls


def test_example_permissions_are_enough_for_each_host() -> None:
    text = (EXAMPLE / "nats-server.conf").read_text(encoding="utf-8")
    for host in ("host1", "host2"):
        found = endpoint(host)
        assert found.in_ is not None
        assert found.out is not None
        consumer = f"{found.out.stream}.{found.out.durable}"
        assert f'publish: ["{found.in_.subject}",' in text
        for call in ("CONSUMER.INFO", "CONSUMER.DURABLE.CREATE", "CONSUMER.MSG.NEXT"):
            assert f'"$JS.API.{call}.{consumer}"' in text
        assert f'"$JS.ACK.{consumer}.>"' in text
