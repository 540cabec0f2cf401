"""Helpers of the tests of faults."""

from __future__ import annotations

from tests.system.nsbridged import Nsbridged
from tests.system.room import wait_until

TO_WEB, TO_LEGACY = 0x52, 0x51  # keys of `route`: what is sent into the first becomes a file, and the other way


def says(daemon: Nsbridged, name: str, text: str) -> None:
    """Wait until status shows that agent as blocked, with that reason."""

    def said() -> bool:
        agent = daemon.agents()[name]
        return bool(agent["phase"] == "blocked" and text in agent["detail"])

    try:
        wait_until(said, f"status of {name} says {text!r}")
    except AssertionError as error:
        raise AssertionError(f"{error}; {daemon.agents()[name]}; log:\n{daemon.said()}") from None


def says_nothing(daemon: Nsbridged, name: str) -> None:
    """Wait until it is not blocked any more."""
    wait_until(lambda: daemon.agents()[name]["phase"] in ("idle", "relaying"), f"{name} resumes")


def configured(routes: str, line: str) -> str:
    """Return the configuration with one more line about the route `r`."""
    return routes.replace("[route.r]\n", f"[route.r]\n{line}\n", 1)


def bodies(count: int, length: int) -> list[bytes]:
    """Return messages that all differ."""
    return [(b"%06d " % number).ljust(length, b".") for number in range(count)]
