"""Messages in flight to a real nats-server while other programs publish to the same stream."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsbridge.agents.endpoints.nats.chain import Chain, Entry, Last
from nsbridge.agents.endpoints.nats.evidence import Id
from nsbridge.agents.endpoints.nats.stream import StreamState
from tests.system.nats_servers import NatsClient, running

STATE = StreamState("TO", 0, 1, 0, is_whole=True, max_message=-1, is_replicated=False, loses="")


def publish(client: NatsClient, messages: list[tuple[Entry, dict[str, str]]]) -> None:
    """Publish to the stream without asking what became of it."""

    async def all_of_them() -> None:
        for entry, headers in messages:
            await client.client.publish("to.far", entry.body, headers=headers)
        await client.client.flush()

    client.run(all_of_them())


@pytest.mark.parametrize("subject", ["to.far", "to.near"])
@pytest.mark.parametrize("theirs", [1, 2, 3, 7])
def test_no_message_is_left_out_behind_those_of_others(tmp_path: Path, subject: str, theirs: int) -> None:
    """After as many messages of others as of ours were refused, the sequences behind are the expected ones again."""
    entries = [Entry(Id(0xA, seq), 0, b"ours %d" % seq) for seq in range(1, 11)]
    chain = Chain(STATE, (), Last(0, None), 256)
    with running(tmp_path / "nats") as server, NatsClient(server.url) as client:
        client.add_stream("TO", ["to.*"])
        publish(client, [(entries[0], chain.headers(entries[0]))])
        chain.publish(entries[0], is_last=False)
        chain.confirm(1, 1)
        flying = []
        for entry in entries[1:]:
            flying.append((entry, chain.headers(entry)))
            chain.publish(entry, is_last=False)
        client.publish(subject, [b"theirs"] * theirs)
        publish(client, flying)
        ours = [body for body in client.bodies("TO") if body != b"theirs"]
        assert ours == [entry.body for entry in entries[: len(ours)]]
