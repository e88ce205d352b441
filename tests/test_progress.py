"""What is told of work that takes long, on a terminal and in a log."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import pytest
from rich.console import Console

from treeplay import progress
from treeplay.progress import Meter, Reporter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines_of(clock: Clock, seconds: float, steps: int, *, terminal: bool = False) -> list[str]:
    """What a stage of ``steps`` equal steps prints."""
    text = io.StringIO()
    reporter = Reporter(Console(file=text, width=200, force_terminal=terminal))
    with reporter.stage("round-1 train", steps) as meter:
        for step in range(steps):
            clock.now += seconds / steps
            meter.sampled(100, 1)
            meter.note(f"{meter.rate()}  loss 0.{step}")
    return text.getvalue().splitlines()


def test_a_short_stage_is_one_line(clock: Clock) -> None:
    assert lines_of(clock, 50, 10) == [
        "round-1 train                   10 of 10     50.0 s  20 tokens/s"
    ]


def test_a_log_hears_of_a_long_stage_now_and_then(clock: Clock) -> None:
    lines = lines_of(clock, 3600, 360)
    assert lines[-1] == "round-1 train                  360 of 360   3600.0 s  10 tokens/s"
    told = [re.search(r"([\d.]+) s  .*about (\d+) min left$", line) for line in lines[:-1]]
    times = [float(one[1]) for one in told if one]
    assert len(times) == len(told)
    assert times[0] == 60
    gaps = [b - a for a, b in pairwise(times)]
    assert min(gaps) >= progress.EVERY
    assert sorted(gaps) == gaps  # fewer and fewer
    assert 10 < len(times) < 20
    assert told[0] is not None
    assert int(told[0][2]) == 59


def test_what_was_there_already_took_no_time(clock: Clock) -> None:
    said: list[str] = []
    meter = Meter("grow", 100, say=said.append)
    meter.reach(80)
    clock.now += 100
    meter.reach(90)
    assert said[-1].endswith("90 of 100    100.0 s  about 2 min left")


def test_what_a_step_says_is_in_the_line() -> None:
    said: list[str] = []
    meter = Meter("train", 4, say=said.append)
    meter._next = 0.0
    meter.note("loss 0.5")
    assert re.fullmatch(r"train +0 of 4 +0\.0 s  loss 0\.5", said[0])


def test_a_terminal_has_a_bar_and_the_same_last_line(clock: Clock) -> None:
    lines = lines_of(clock, 3600, 36, terminal=True)
    assert "36 of 36   3600.0 s  1 tokens/s" in lines[-1]
    assert not any("min left" in line for line in lines)
