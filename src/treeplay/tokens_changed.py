"""Which tokens of a program make it secure or vulnerable: those in which a pair's answers differ.

SVEN (He and Vechev 2023, arXiv 2302.05319, section 4.2) and SafeCoder (He et al. 2024, arXiv
2402.09497, section 4.2) learn security from these tokens alone. Everything is found by text, then
laid on the tokens, so that it does not matter where a tokenizer cuts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

# Words, runs of white space within a line, line breaks, and single signs.
_PIECE = re.compile(r"\w+|\n|[^\S\n]+|[^\w\s]")

# How finely answers are compared: by words and signs, by whole lines, or not at all (every token
# of the answer counts as changed).
Level = Literal["word", "line", "all"]


def changed_spans(answer: str, other: str, level: Level = "word") -> list[tuple[int, int]]:
    """Character spans (start, end) of ``answer`` that ``other`` does not have, in order.

    What ``other`` has in addition leaves no span: there is no text of it here. White space that
    differs counts only together with code that does.
    """
    if level == "all":
        return [(0, len(answer))] if answer.strip() else []
    mine, theirs = _pieces(answer, level), _pieces(other, level)
    starts = [0]
    for piece in mine:
        starts.append(starts[-1] + len(piece))
    spans: list[tuple[int, int]] = []
    for kind, i, j, _, _ in SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        start, end = starts[i], starts[j]
        if kind in ("replace", "delete") and answer[start:end].strip():
            spans.append((start, end))
    return spans


def changed_mask(
    starts: Sequence[int], length: int, spans: Sequence[tuple[int, int]]
) -> tuple[bool, ...]:
    """For each token whether a span touches it, (T,).

    ``starts``: character offset at which each token begins, as :class:`TokenPath` counts them
    (negative inside the prompt, where nothing has changed); ``length``: characters of the answer.
    """
    ends = [*starts[1:], length]
    # Tokens that share a character (a piece of a multi-byte one) begin together: they end together.
    for i in range(len(starts) - 2, -1, -1):
        if starts[i] == starts[i + 1]:
            ends[i] = ends[i + 1]
    return tuple(
        any(start < to and at < end for at, to in spans) if start >= 0 or end > 0 else False
        for start, end in zip(starts, ends, strict=True)
    )


def _pieces(text: str, level: Level) -> list[str]:
    return text.splitlines(keepends=True) if level == "line" else _PIECE.findall(text)
