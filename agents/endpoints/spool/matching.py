"""Decides by its name if a file of a spool's `out` is a message (`match`, `ignore`). Reads no file.

Names are bytes in any encoding, so a `?` or a range matches one byte.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Sequence

from nsbridge.config.patterns import TakenNames

IsMessage = Callable[[bytes], bool]


def message_names(names: TakenNames) -> IsMessage:
    """Return a function that is True for the name of a message: not hidden, matched, and not ignored."""
    ignores, matches = _matcher(names.ignore), _matcher(names.match)
    if "*" in names.match:
        return lambda name: not name.startswith(b".") and not ignores(name)
    return lambda name: not name.startswith(b".") and matches(name) and not ignores(name)


def _matcher(patterns: Sequence[str]) -> IsMessage:
    """Return a function that is True for a name that one of the patterns matches."""
    texts = [os.fsencode(pattern).decode("latin-1") for pattern in patterns]
    plain = [text for text in texts if text[:1] == "*" and not re.search(r"[*?\[]", text[1:])]
    suffixes = tuple(text[1:].encode("latin-1") for text in plain)  # compared much faster than an expression
    others = "|".join(fnmatch.translate(text) for text in texts if text not in plain)
    if not others:
        return lambda name: name.endswith(suffixes)
    matched = re.compile(others.encode("latin-1")).match
    return lambda name: name.endswith(suffixes) or matched(name) is not None
