"""What an import did with every record it read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from treeplay.tasks.notes import place_notes
from treeplay.tasks.task import Task

Action = Literal["dropped", "flagged", "note unplaced"]


@dataclass(frozen=True)
class ReportLine:
    """One thing to know about one record. ``where`` is ``file:line`` or ``file[index]``."""

    item: str
    action: Action
    reason: str
    where: str = ""
    detail: str = ""


@dataclass(frozen=True)
class ImportReport:
    """Counts and lines of one import; ``str()`` prints it.

    ``read == kept + sum(dropped.values())``: each dropped record is counted under one reason. A
    kept record may be flagged for several. ``remarks`` are whole sentences about the set.
    """

    kind: str
    read: int
    kept: int
    dropped: dict[str, int]
    flagged: dict[str, int]
    notes_placed: dict[str, int]
    notes_unplaced: dict[str, int]
    lines: tuple[ReportLine, ...]
    remarks: tuple[str, ...] = ()

    def summary(self) -> str:
        """The counts, without the per-item lines."""
        rows = [f"{self.kind}: read {self.read}, kept {self.kept}"]
        rows += [f"  dropped {count:5d}  {reason}" for reason, count in self.dropped.items()]
        rows += [f"  flagged {count:5d}  {reason}" for reason, count in self.flagged.items()]
        placed, unplaced = self.notes_placed, self.notes_unplaced
        if placed or unplaced:
            total = sum(placed.values()) + sum(unplaced.values())
            ways = ", ".join(f"{how} {count}" for how, count in placed.items())
            rows.append(f"  risk notes: {total}, placed {sum(placed.values())} ({ways})")
            rows += [f"  unplaced {count:4d}  {reason}" for reason, count in unplaced.items()]
        rows += [f"  {remark}" for remark in self.remarks]
        return "\n".join(rows)

    def __str__(self) -> str:
        rows = [self.summary()]
        for line in self.lines:
            detail = f" ({line.detail})" if line.detail else ""
            where = f" [{line.where}]" if line.where else ""
            rows.append(f"  {line.item}: {line.action}: {line.reason}{detail}{where}")
        return "\n".join(rows)


@dataclass(frozen=True)
class ImportResult:
    tasks: list[Task]
    report: ImportReport


def make_report(
    kind: str,
    read: int,
    tasks: list[Task],
    lines: Iterable[ReportLine],
    remarks: Iterable[str] = (),
) -> ImportResult:
    """Count the lines, place the risk notes of the tasks and count those too."""
    lines = list(lines)
    placed: Counter[str] = Counter()
    for task in tasks:
        placement = place_notes(task)
        placed.update(found.how for found in placement.placed)
        lines += [
            ReportLine(task.id, "note unplaced", missed.reason, detail=_short(missed.note.code))
            for missed in placement.unplaced
        ]

    def counts(action: Action) -> dict[str, int]:
        return dict(Counter(line.reason for line in lines if line.action == action).most_common())

    report = ImportReport(
        kind=kind,
        read=read,
        kept=len(tasks),
        dropped=counts("dropped"),
        flagged=counts("flagged"),
        notes_placed=dict(placed.most_common()),
        notes_unplaced=counts("note unplaced"),
        lines=tuple(lines),
        remarks=tuple(remarks),
    )
    return ImportResult(tasks, report)


def _short(code: str, width: int = 60) -> str:
    line = " ".join(code.split())
    return line if len(line) <= width else line[: width - 3] + "..."
