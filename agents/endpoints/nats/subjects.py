"""Subjects of NATS: tokens with dots between them; `*` stands for one token, `>` for all that follow. No I/O."""

from __future__ import annotations

import re
from itertools import zip_longest

_TOKEN = r"[^\s.*>]+"  # noqa: S105  (a part of a subject)
_LITERAL = re.compile(rf"{_TOKEN}(\.{_TOKEN})*")
_FILTER = re.compile(rf"({_TOKEN}|\*)(\.({_TOKEN}|\*))*(\.>)?|>")


def is_literal(text: str) -> bool:
    """True if it is a subject to which a message can be published."""
    return _LITERAL.fullmatch(text) is not None and text.isprintable()


def is_filter(text: str) -> bool:
    """True if it is a subject, or a pattern of subjects."""
    return _FILTER.fullmatch(text) is not None and text.isprintable()


def matches(pattern: str, subject: str) -> bool:
    """True if the pattern covers the subject, which may be a pattern too."""
    for wanted, word in zip_longest(pattern.split("."), subject.split(".")):
        if wanted == ">":
            return word is not None
        if word is None or wanted is None or word == ">":
            return False
        if wanted not in ("*", word):
            return False
    return True
