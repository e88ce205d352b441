"""Progress a person can read: a live bar on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Meter:
    """Counts finished items and, beside them, tokens."""

    def __init__(self, progress: Progress | None, task: int, total: int) -> None:
        self._progress, self._task = progress, task
        self.total = total
        self._start = time.monotonic()
        self.items = 0
        self.token_count = 0

    def advance(self, count: int) -> None:
        self.items += count
        if self._progress is not None:
            self._progress.update(self._task, completed=self.items)  # type: ignore[arg-type]

    def reach(self, items: int, total: int | None = None) -> None:
        """``items`` are finished now, of ``total`` where that is known only now."""
        if total is not None and total != self.total:
            self.total = total
            if self._progress is not None:
                self._progress.update(self._task, total=total)  # type: ignore[arg-type]
        self.advance(items - self.items)

    def tokens(self, count: int) -> None:
        self.token_count += count
        if self._progress is not None:
            self._progress.update(self._task, note=self.rate())  # type: ignore[arg-type]

    def sampled(self, tokens: int, items: int) -> None:
        """So many tokens more, which finished so many items."""
        self.tokens(tokens)
        self.advance(items)

    def note(self, text: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, note=text)  # type: ignore[arg-type]

    def rate(self) -> str:
        spent = max(time.monotonic() - self._start, 1e-6)
        return f"{self.token_count / spent:,.0f} tokens/s" if self.token_count else ""


class Reporter:
    """Where stages report to. ``quiet`` says nothing (tests, library use)."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Meter]:
        """A meter over ``total`` items; its closing line says how long they took."""
        start = time.monotonic()
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
                meter = Meter(bar, bar.add_task(title, total=total, note=""), total)
                yield meter
        else:
            meter = Meter(None, 0, total)
            yield meter
        spent = time.monotonic() - start
        rate = f"  {meter.rate()}" if meter.token_count else ""
        self.say(f"{title:<28} {meter.items:>5} of {meter.total}  {spent:7.1f} s{rate}")
