"""Warns of configurations that are valid but probably a mistake."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator

from nsbridge.config.schema import Config, Delivery, Evidence, Place


def advice(config: Config) -> list[str]:
    """Return the warnings, one line each."""
    return list(_shared_queues(config))


def shared_queue(shown: str, other: str) -> str:
    """Return the warning that another exactly-once agent sends into the same queue."""
    return (
        f"{other} sends into {shown} too. Without the kernel's counter (evidence) neither can find out after a kill "
        "whether its last message was sent, and in_doubt decides: let one route send into it, or set delivery = "
        '"at-least-once"'
    )


def _shared_queues(config: Config) -> Iterator[str]:
    """Find exactly-once routes that send into one queue: each overwrites the kernel's note of the last sender."""
    if config.daemon.evidence is Evidence.COUNTER:
        return
    senders: dict[tuple[str, Hashable], list[tuple[str, Place]]] = defaultdict(list)
    for route in config.routes:
        for agent in route.agents:
            place = agent.endpoint.places().get("in")
            if place is not None and place.has_last_sender and route.delivery is Delivery.EXACTLY_ONCE:
                senders[str(agent.container), place.where].append((agent.name, place))
    for (container, _), ((first, place), *others) in senders.items():
        for other, _ in others:
            yield f"{other}: " + shared_queue(f"{place.shown} of {container}", first)
