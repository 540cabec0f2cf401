"""The programs at both ends of NATS, in Python: echo server and client, publisher and subscriber.

usage: nats_program.py ROLE PORT COUNT SIZE, where ROLE is echo-server, echo-client, publish, subscribe, js-publish,
js-subscribe, js-window (publishes with a window) or js-fetch (takes what is there). They print what the C programs
print (mnt_echo_client.c, load.c). js: JetStream, where the server stores and both publisher and subscriber have
acknowledgements, so none is lost.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from typing import Any

nats: Any = importlib.import_module("nats")
SUBJECT, STREAM = "bench", "BENCH"
WINDOW = 1024  # messages in flight
BATCH = 500  # acknowledgements of the server that are waited for together


async def echo_server(client: Any, _count: int, _size: int) -> None:
    async def answer(message: Any) -> None:
        await message.respond(message.data)

    await client.subscribe(SUBJECT, cb=answer)
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def echo_client(client: Any, count: int, size: int) -> None:
    times = []
    for number in range(count):
        body = (b"%08d" % number).ljust(size, b"a")
        begun = time.perf_counter()
        answer = await client.request(SUBJECT, body, timeout=10)
        times.append((time.perf_counter() - begun) * 1e6)
        assert answer.data == body
    times.sort()
    p50, p90, p99 = (times[count * part // 100] for part in (50, 90, 99))
    print(f"rtt_us p50 {p50:.1f} p90 {p90:.1f} p99 {p99:.1f} max {times[-1]:.1f}")


async def publish(client: Any, count: int, size: int) -> None:
    begun = _begin()
    for number in range(count):
        await client.publish(SUBJECT, (b"%08d" % number).ljust(size, b"a"))
    await client.flush(timeout=60)
    _end(begun)


async def subscribe(client: Any, count: int, size: int) -> None:
    messages = await client.subscribe(SUBJECT, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await client.flush()
    begun = _begin()
    for number in range(count):
        _check(await messages.next_msg(timeout=30), number, size)
    _end(begun)


async def js_publish(client: Any, count: int, size: int) -> None:
    stream = client.jetstream()
    begun = _begin()
    for first in range(0, count, BATCH):
        batch = range(first, min(first + BATCH, count))
        await asyncio.gather(*(stream.publish(SUBJECT, (b"%08d" % n).ljust(size, b"a"), timeout=30) for n in batch))
    _end(begun)


async def js_subscribe(client: Any, count: int, size: int) -> None:
    stream = client.jetstream()
    await stream.add_stream(name=STREAM, subjects=[SUBJECT], storage="memory", retention="workqueue")
    puller = await stream.pull_subscribe(SUBJECT, durable="drain")
    begun, number = _begin(), 0
    while number < count:
        for message in await puller.fetch(min(BATCH, count - number), timeout=30):
            _check(message, number, size)
            number += 1
            await message.ack()
    _end(begun)


async def js_window(client: Any, count: int, size: int) -> None:
    stream = client.jetstream(publish_async_max_pending=WINDOW)
    begun = _begin()
    for number in range(count):
        await stream.publish_async(SUBJECT, (b"%08d" % number).ljust(size, b"a"))
    await stream.publish_async_completed()
    _end(begun)


async def js_fetch(client: Any, count: int, size: int) -> None:
    puller = await client.jetstream().pull_subscribe(SUBJECT, durable="fetch")
    begun, number = _begin(), 0
    while number < count:
        for message in await puller.fetch(min(BATCH, count - number), timeout=30):
            assert len(message.data) == size
            number += 1
            await message.ack()
    await client.flush(timeout=60)
    _end(begun)


def _begin() -> float:
    print("ready", flush=True)
    return time.monotonic()


def _end(begun: float) -> None:
    print(f"{begun:.9f} {time.monotonic():.9f}")


def _check(message: Any, number: int, size: int) -> None:
    assert len(message.data) == size, f"{len(message.data)} bytes"
    assert message.data[:8] == b"%08d" % number, f"message {number}: got {message.data[:8]!r}"


async def main() -> None:
    role, port, count, size = sys.argv[1:]
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    await ROLES[role](client, int(count), int(size))
    await client.close()


ROLES = {
    "echo-server": echo_server,
    "echo-client": echo_client,
    "publish": publish,
    "subscribe": subscribe,
    "js-publish": js_publish,
    "js-subscribe": js_subscribe,
    "js-window": js_window,
    "js-fetch": js_fetch,
}

if __name__ == "__main__":
    asyncio.run(main())
