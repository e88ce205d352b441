"""Progress a person can read: a live bar on a terminal; elsewhere a line a stage, and of a long one
a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from treeplay.track import Tracks
from treeplay.words import printable

# Seconds until the first line of a stage in a log, and from one to the next at least; later ones
# come each after so many times the time of the one before.
EVERY = 60.0
LATER = 1.25
# What is finished within so many seconds was finished before.
AT_ONCE = 0.5


class Meter:
    """Counts finished items and, beside them, tokens; tells a bar, or says a line now and then."""

    def __init__(
        self,
        title: str,
        total: int,
        progress: Progress | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._title, self.total = title, total
        self._say = say
        self._bar: Callable[..., None] | None = None
        if progress is not None:
            self._bar = partial(progress.update, progress.add_task(title, total=total, note=""))
        self._start = time.monotonic()
        self._next = EVERY
        self._note = ""
        self._before = 0  # items that were there already, when a stage goes on
        self.items = 0
        self.token_count = 0

    def line(self, note: str = "") -> str:
        """Items, seconds, and ``note`` or the rate."""
        spent = time.monotonic() - self._start
        after = note or self.rate()
        return f"{self._title:<28} {self.items:>5} of {self.total}  {spent:7.1f} s" + (
            f"  {after}" if after else ""
        )

    def _now_and_then(self) -> None:
        spent = time.monotonic() - self._start
        if self._say is None or spent < self._next:
            return
        self._next = max(spent + EVERY, spent * LATER)
        new = self.items - self._before
        left = spent / new * (self.total - self.items) if new else 0.0
        more = f"  about {max(1, round(left / 60))} min left" if left else ""
        self._say(self.line(self._note) + more)

    def advance(self, count: int) -> None:
        self.items += count
        if self._bar:
            self._bar(completed=self.items)
        if time.monotonic() - self._start < AT_ONCE:
            self._before = self.items
        self._now_and_then()

    def reach(self, items: int, total: int | None = None) -> None:
        """``items`` are finished now, of ``total`` where that is known only now."""
        if total is not None and total != self.total:
            self.total = total
            if self._bar:
                self._bar(total=total)
        self.advance(items - self.items)

    def tokens(self, count: int) -> None:
        self.token_count += count
        if self._bar:
            self._bar(note=self.rate())
        self._now_and_then()

    def sampled(self, tokens: int, items: int) -> None:
        """So many tokens more, which finished so many items."""
        self.items += items
        self.tokens(tokens)
        self.advance(0)

    def note(self, text: str) -> None:
        if self._bar:
            self._bar(note=text)
        self._note = text
        self._now_and_then()

    def rate(self) -> str:
        spent = max(time.monotonic() - self._start, 1e-6)
        return f"{self.token_count / spent:,.0f} tokens/s" if self.token_count else ""


class Reporter:
    """Where stages report to. ``quiet`` says nothing (tests, library use). ``tracks``: the trackers
    that figures go to."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)
        self.tracks = Tracks()

    def say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Meter]:
        """A meter over ``total`` items; its closing line says how long they took."""
        if self.console.is_terminal and not self.console.quiet:
            bar = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
            )
            with bar:
                meter = Meter(title, total, progress=bar)
                yield meter
        else:
            meter = Meter(title, total, say=self.say)
            yield meter
        self.say(meter.line())
