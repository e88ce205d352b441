"""What running an answer's tests gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "exploited", "fail", "unknown"]


@dataclass(frozen=True)
class GroupResult:
    """What became of one test group; ``detail`` says why (several lines at most)."""

    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Execution:
    """Both groups. ``valid``: the program parses or compiles; None when that is not known."""

    valid: bool | None
    functional: GroupResult
    security: GroupResult


def not_run(why: str) -> Execution:
    """Nothing could be run here."""
    nothing = GroupResult("unknown", why)
    return Execution(None, nothing, nothing)
