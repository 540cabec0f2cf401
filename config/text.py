"""Text for people: what came from outside, made safe to show (the one escaper of the whole program); durations."""

from __future__ import annotations


def escape(text: str) -> str:
    r"""Return `text` with each unprintable character spelled out (\x1b, \n, \udc80, \u202e).

    A container chooses names and messages; a terminal obeys escape sequences, and a log reader believes line breaks.
    Escaping twice changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def duration(seconds: float) -> str:
    """Return `seconds` as 2:03:11, with days before it if there are any (3d 2:03:11)."""
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hour}:{minute:02}:{second:02}"
