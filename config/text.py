"""Text from outside, made safe to show: the one escaper of the whole program."""

from __future__ import annotations


def escape(text: str) -> str:
    r"""Return `text` with each unprintable character spelled out (\x1b, \n, \udc80, \u202e).

    A container chooses names and messages; a terminal obeys escape sequences, and a log reader believes line breaks.
    Escaping twice changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
