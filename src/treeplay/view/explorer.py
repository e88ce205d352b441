"""A tree, and a sample, as numbered code lines that the page can show.

Only plain data comes out of here (dicts, lists, strings); nothing is markup, so the template can
escape every piece of it. Line numbers are those of the whole program, as in the findings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from treeplay.judge.verdict import LABELS, Finding, Verdict
from treeplay.metrics import Scored
from treeplay.tasks.task import Task
from treeplay.tree import Branch, Node, Tree

ORDER = ("vulnerable", "secure", "inert", "plain", "invalid", "unknown", "unjudged")
_WIDTH = 240  # characters of a line that are shown


@dataclass(frozen=True)
class Show:
    """How much of a run is shown: ``trees`` and ``tasks`` at most, different ``branches`` of a
    node, different ``samples`` of a task and player, ``lines`` of each."""

    trees: int
    branches: int
    tasks: int
    samples: int
    lines: int


# From rich to poor; the page takes the first that keeps it small enough.
SHOWS = (
    Show(trees=400, branches=24, tasks=400, samples=10, lines=60),
    Show(trees=200, branches=8, tasks=200, samples=5, lines=40),
    Show(trees=100, branches=6, tasks=100, samples=3, lines=30),
    Show(trees=50, branches=4, tasks=60, samples=2, lines=20),
    Show(trees=20, branches=3, tasks=20, samples=1, lines=12),
)


def label_counts(labels: Iterable[str]) -> list[dict[str, Any]]:
    """Counts with shares, in the order the page draws them; labels that do not occur left out."""
    counts = Counter(labels)
    total = sum(counts.values())
    return [
        {"label": label, "count": counts[label], "share": counts[label] / total}
        for label in ORDER
        if counts[label]
    ]


def explore(tree: Tree, task: Task | None, show: Show) -> dict[str, Any]:
    """The golden path as lines, each with the nodes that sit on it.

    Without the task (no ``tasks.jsonl``) the prompt is unknown and only the answer is shown.
    """
    known = task.prompt if task else None
    prompt = known or ""
    program = prompt + tree.golden
    nodes: dict[int, list[dict[str, Any]]] = {}
    marks: dict[int, list[tuple[int, int]]] = {}
    for node in tree.nodes:
        if node.branch is None:
            at = _place(program, len(prompt) + max(node.offset, 0))
            line, column = _line_of(program, at)
            nodes.setdefault(line, []).append(_node(tree, node, known, line, show))
            marks.setdefault(line, []).append((column, node.id))
    texts = program.split("\n")
    while texts and not texts[-1].strip():
        texts.pop()
    seam = _line_of(program, len(prompt))[0]  # the line in which the prompt ends
    first = max(1, seam - show.lines + 1)
    last = min(len(texts), max([seam + show.lines, *nodes]))
    suffix = (task.suffix if task else "").strip("\n")
    return {
        "task": tree.task,
        "language": task.language if task else "",
        "cwe": list(task.cwe) if task else sorted({n.cwe for n in tree.nodes if n.cwe}),
        "instruction": task.instruction if task else "",
        "labels": label_counts(_label(branch.verdict) for branch in tree.branches),
        "branches": len(tree.branches),
        "above": first - 1,
        "below": len(texts) - last,
        "lines": [
            {
                "number": number if task else "",
                "pieces": _marked(texts[number - 1], marks.get(number, [])),
                "given": number <= seam,
                "nodes": nodes.get(number, []),
            }
            for number in range(first, last + 1)
        ],
        "suffix": _clipped(suffix.split("\n"), 8) if suffix else [],
    }


def _node(tree: Tree, node: Node, prompt: str | None, line: int, show: Show) -> dict[str, Any]:
    here = [branch for branch in tree.branches if branch.node == node.id]
    parents = {other.branch for other in tree.nodes}
    groups: dict[tuple[Any, ...], list[Branch]] = {}
    for branch in here:
        own = branch.id if branch.id in parents else None  # one with nodes of its own stays alone
        groups.setdefault((branch.answer, branch.verdict, own), []).append(branch)
    ordered = sorted(groups.values(), key=lambda g: (ORDER.index(_label(g[0].verdict)), -len(g)))
    shown = [_branch(tree, node, group, prompt, show) for group in ordered[: show.branches]]
    return {
        "id": node.id,
        "source": node.source,
        "cwe": node.cwe,
        "line": line,
        "labels": label_counts(_label(branch.verdict) for branch in here),
        "total": len(here),
        "vulnerable": sum(_label(branch.verdict) == "vulnerable" for branch in here),
        "branches": shown,
        "left_out": len(here) - sum(branch["count"] for branch in shown),
    }


def _branch(
    tree: Tree, node: Node, group: Sequence[Branch], known: str | None, show: Show
) -> dict[str, Any]:
    branch = group[0]
    prompt = known or ""
    program = prompt + branch.answer
    start = len(prompt) + max(node.offset, 0)
    # What the model wrote of the judged answer: the rest was cut off, or is grafted on.
    wrote = _shared(program[start:], branch.text)
    # Findings count lines of the whole program: without the prompt they cannot be placed.
    findings = branch.verdict.findings if branch.verdict and known is not None else ()
    first = _line_of(program, _place(program, start))[0]
    last = _line_of(program, max(start + len(program[start : start + wrote].rstrip()), start))[0]
    hits = [f.line_start for f in findings if first <= f.line_start <= first + show.lines]
    last = min(max([last, *hits]), first + show.lines - 1)
    lines = []
    begin = 0
    for number, text in enumerate(program.split("\n"), start=1):
        if first <= number <= last:
            cuts = sorted({0, *(min(max(c - begin, 0), len(text)) for c in (start, start + wrote))})
            pieces = []
            for left, right in zip(cuts, [*cuts[1:], len(text)], strict=True):
                if left < right:
                    at = begin + left
                    kind = "path" if at < start else "own" if at < start + wrote else "graft"
                    pieces.append({"kind": kind, "text": _narrow(text[left:right])})
            shown = number if known is not None else ""
            lines.append({"number": shown, "pieces": pieces, "hit": _hit(findings, number)})
        begin += len(text) + 1
    children = [
        _node(tree, other, known, _line_of(program, len(prompt) + other.offset)[0], show)
        for other in tree.nodes
        if other.branch == branch.id
    ]
    return {
        "count": len(group),
        **_verdict(branch.verdict),
        "lines": lines,
        "empty": not branch.text.strip(),
        "more": max(0, program.rstrip().count("\n") + 1 - last),
        "completion": branch.completion,
        "ended": branch.ended,
        "children": children,
    }


def sample_groups(samples: Sequence[Scored], prompt: str | None, show: Show) -> dict[str, Any]:
    """One player's samples of one task: equal answers together, the most frequent first.

    Without the prompt the lines have no numbers and findings are not placed on them.
    """
    groups: dict[tuple[str, Verdict], list[Scored]] = {}
    for one in samples:
        groups.setdefault((one.answer, one.verdict), []).append(one)
    ordered = sorted(groups.values(), key=lambda group: -len(group))
    before, shown = (prompt or "").count("\n"), []
    for group in ordered[: show.samples]:
        one = group[0]
        lines = one.answer.rstrip().split("\n")
        blank = next((i for i, line in enumerate(lines) if line.strip()), 0)
        shown.append(
            {
                "count": len(group),
                **_verdict(one.verdict),
                "empty": not one.answer.strip(),
                "lines": [
                    {
                        "number": "" if prompt is None else number,
                        "pieces": [{"kind": "own", "text": _narrow(text)}],
                        "hit": "" if prompt is None else _hit(one.verdict.findings, number),
                    }
                    for number, text in enumerate(lines, start=before + 1)
                ][blank : blank + show.lines],
                "more": max(0, len(lines) - blank - show.lines),
                "ended": one.ended,
            }
        )
    return {
        "total": len(samples),
        "labels": label_counts(one.verdict.label for one in samples),
        "groups": shown,
        "left_out": len(samples) - sum(group["count"] for group in shown),
    }


def _verdict(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {"label": "unjudged", "evidence": "none", "reason": "", "tests": "", "findings": []}
    tests = {True: "functional tests pass", False: "functional tests fail", None: ""}
    return {
        "label": verdict.label,
        "evidence": verdict.evidence,
        "reason": _narrow(verdict.reason),
        "tests": tests[verdict.functional],
        "findings": [
            {
                "cwe": f.cwe or "",
                "line": f.line_start,
                "rule": f.rule,
                "tool": f.tool,
                "message": _narrow(f.message),
            }
            for f in verdict.findings[:5]
        ],
    }


def _label(verdict: Verdict | None) -> str:
    return verdict.label if verdict else "unjudged"


def _hit(findings: Sequence[Finding], number: int) -> str:
    """What a finding says of this line: its CWE (or rule), "" where there is none."""
    for finding in findings:
        if finding.line_start <= number <= max(finding.line_end, finding.line_start):
            return finding.cwe or finding.rule
    return ""


def _place(program: str, at: int) -> int:
    """The first character at or behind ``at`` that is no white space, or ``at`` without one."""
    ahead = program[at:]
    return at + len(ahead) - len(ahead.lstrip()) if ahead.strip() else at


def _line_of(program: str, at: int) -> tuple[int, int]:
    """(1-based line, 0-based column) of a character offset."""
    at = min(at, len(program))
    return program.count("\n", 0, at) + 1, at - (program.rfind("\n", 0, at) + 1)


def _marked(text: str, marks: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """The line cut at its node marks: pieces of {"text": str} and {"node": id}."""
    pieces: list[dict[str, Any]] = []
    begin = 0
    for column, node in sorted(marks):
        pieces += [{"text": _narrow(text[begin:column])}, {"node": node}]
        begin = column
    pieces.append({"text": _narrow(text[begin:])})
    return pieces


def _shared(one: str, other: str) -> int:
    """How many characters the two have in common from their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _clipped(lines: list[str], count: int) -> list[str]:
    shown = [_narrow(line) for line in lines[:count]]
    return shown if len(lines) <= count else [*shown, f"… {len(lines) - count} more lines"]


def _narrow(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]} …"


assert set(LABELS) <= set(ORDER)
