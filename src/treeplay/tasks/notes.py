"""Where a given risk line lies in the golden answer.

Annotated data names its risk lines by their text, written by a language model: indentation is
lost, a long statement is joined to one line, now and then a word is changed. Every note is either
placed, with character offsets in ``task.golden``, or listed with the reason it could not be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from treeplay.tasks.task import RiskNote, Task

How = Literal["exact", "whitespace", "part", "fuzzy"]
_SPANS: tuple[Literal["whitespace", "part"], ...] = ("whitespace", "part")
FUZZY = 0.8  # least difflib ratio of a line that counts as the note's line


@dataclass(frozen=True)
class Placed:
    """``golden[char_start:char_end]`` is the line, or the lines, of the note.

    ``char_start`` is the first non-blank character of the (first) line. ``how``: the text was
    equal, equal but for white space, a part of the line, or similar.
    """

    note: RiskNote
    char_start: int
    char_end: int
    how: How


@dataclass(frozen=True)
class Unplaced:
    note: RiskNote
    reason: str


@dataclass(frozen=True)
class Placement:
    placed: tuple[Placed, ...]
    unplaced: tuple[Unplaced, ...]


@dataclass(frozen=True)
class _Line:
    start: int
    end: int
    text: str  # stripped


def place_notes(task: Task) -> Placement:
    """Place every note of the task on its golden answer.

    A line that occurs several times is given to the notes that name it in turn; when there are
    more such notes than lines, the first line is shared. Reasons for the others: "empty", "no
    golden answer", "in the prompt", "only in the vulnerable version", "several similar lines",
    "not found".
    """
    golden = task.golden or ""
    lines = list(_lines(golden))
    squeezed, places = _squeeze(golden)
    used: set[int] = set()
    placed: list[Placed] = []
    unplaced: list[Unplaced] = []
    for note in task.notes:
        found = _find(note, task, lines, squeezed, places, used)
        if isinstance(found, Placed):
            used.add(found.char_start)
            placed.append(found)
        else:
            unplaced.append(Unplaced(note, found))
    return Placement(tuple(placed), tuple(unplaced))


def _find(
    note: RiskNote,
    task: Task,
    lines: list[_Line],
    squeezed: str,
    places: list[int],
    used: set[int],
) -> Placed | str:
    want = "".join(note.code.split())
    if not want:
        return "empty"
    if task.golden is None:
        return "no golden answer"
    code = note.code.strip()
    exact = _first_unused([line for line in lines if line.text == code], used)
    if exact is not None:
        return Placed(note, exact.start, exact.end, "exact")
    spans = list(_squeezed_spans(want, squeezed, places, lines))
    for how in ("whitespace", "part"):
        span = _first_unused([line for kind, line in spans if kind == how], used)
        if span is not None:
            return Placed(
                note, span.start, span.end, "whitespace" if how == "whitespace" else "part"
            )
    if want in _squeeze(task.prompt)[0]:
        return "in the prompt"
    # A note of several lines is looked for by its first line.
    first = " ".join(next(line for line in code.split("\n") if line.strip()).split())
    similar = [line for line in lines if _ratio(first, " ".join(line.text.split())) >= FUZZY]
    free = [line for line in similar if line.start not in used] or similar
    if len({line.text for line in free}) == 1:
        return Placed(note, free[0].start, free[0].end, "fuzzy")
    if want in _squeeze(task.vulnerable or "")[0]:
        return "only in the vulnerable version"
    return "several similar lines" if free else "not found"


def _first_unused(lines: list[_Line], used: set[int]) -> _Line | None:
    if not lines:
        return None
    return next((line for line in lines if line.start not in used), lines[0])


def _ratio(left: str, right: str) -> float:
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    if matcher.real_quick_ratio() < FUZZY or matcher.quick_ratio() < FUZZY:
        return 0.0
    return matcher.ratio()


def _lines(text: str) -> Iterator[_Line]:
    start = 0
    for whole in text.split("\n"):
        line = whole.strip()
        if line:
            first = start + whole.index(line[0])
            yield _Line(first, first + len(line), line)
        start += len(whole) + 1


def _squeeze(text: str) -> tuple[str, list[int]]:
    """The text without white space, and for each of its characters the place in ``text``."""
    places = [index for index, char in enumerate(text) if not char.isspace()]
    return "".join(text[index] for index in places), places


def _squeezed_spans(
    want: str, squeezed: str, places: list[int], lines: list[_Line]
) -> Iterator[tuple[Literal["whitespace", "part"], _Line]]:
    """Every occurrence of ``want``, grown to whole lines."""
    at = squeezed.find(want)
    while at >= 0:
        start, last = places[at], places[at + len(want) - 1]
        head = next(line for line in lines if line.start <= start < line.end)
        tail = next(line for line in lines if line.start <= last < line.end)
        whole = head.start == start and tail.end == last + 1
        yield "whitespace" if whole else "part", _Line(head.start, tail.end, "")
        at = squeezed.find(want, at + 1)
