"""Sentences for people that several modules need."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def nearest(given: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or the list of all that is known when nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"


def printable(text: str) -> str:
    """``text`` for a terminal: control characters, which may be commands to it, are spelled out;
    line breaks and tabs stay."""
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]",
        lambda found: f"\\x{ord(found[0]):02x}",
        text,
    )
