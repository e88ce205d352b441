"""Pairs of whole functions, secure and vulnerable, made into tasks, with the faults of the data.

Faults are found in the content itself, never looked up by name. A pair that teaches nothing
(identical, different in white space only, a duplicate) is dropped; every other faulty one is kept
and flagged in ``task.meta["faults"]``. Both are in the report.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from treeplay.errors import TaskError
from treeplay.tasks.importers.report import ReportLine
from treeplay.tasks.importers.signature import cut_pair, dedent, indent_of, parses
from treeplay.tasks.task import RiskNote, Task, make_task

IDENTICAL = "identical pair"
WHITESPACE = "whitespace-only pair"
DUPLICATE = "duplicate pair"
BOTH_LABELS = "text is secure in one pair and vulnerable in another"
NO_PARSE_SECURE = "secure version does not parse"
NO_PARSE_VULNERABLE = "vulnerable version does not parse"
LEAK_COMMIT = "validation pair shares its commit with train"
LEAK_REPOSITORY = "validation pair shares its repository with train"
NO_CWE = "names no CWE"
NO_LANGUAGE = "language not supported"
NO_PROMPT = "no prompt can be made"
UNUSABLE = "not usable as a task"


@dataclass(frozen=True)
class Pair:
    """One upstream pair of whole functions. ``given``: the prompt that upstream gives, if any.

    ``upstream_split`` is "train", "val" or ""; ``commit_link`` is
    "host/owner/repository/commit/hash"; ``language`` None when the file's ending is not known;
    ``faults`` were found while reading.
    """

    id: str
    where: str
    language: str | None
    cwe: tuple[str, ...]
    secure: str
    vulnerable: str
    given: str | None = None
    description: str = ""
    name: str = ""
    file_name: str = ""
    commit_link: str = ""
    upstream_split: str = "train"
    source: str = ""
    license: str = "MIT"
    notes: tuple[RiskNote, ...] = ()
    faults: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


def squeeze(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


def too_long(max_chars: int) -> str:
    """The flag of a pair with a side of more than ``max_chars`` characters."""
    return f"longer than {max_chars} characters"


def repository_of(commit_link: str) -> str:
    """ "github.com/owner/repository" of a commit link, in lower case; "" when there is none."""
    link = commit_link.split("://", 1)[-1].strip().lower()
    for mark in ("/-/commit/", "/commit/", "/commits/", "/pull/"):
        if mark in link:
            return link.split(mark, 1)[0].rstrip("/")
    return ""


def pairs_to_tasks(
    pairs: list[Pair], *, comment: bool, max_chars: int | None
) -> tuple[list[Task], list[ReportLine], list[str]]:
    """(tasks, report lines, remarks) of the pairs, in their order.

    ``comment``: the description stands as a comment line above the code. Pairs of the validation
    part that share a repository with the training part are moved into the split "train", so that
    what stays "eval" is held out by repository.
    """
    lines: list[ReportLine] = []
    kept = _drop_empty(pairs, lines)
    secure = {squeeze(pair.secure) for pair in kept}
    vulnerable = {squeeze(pair.vulnerable) for pair in kept}
    train = [pair for pair in kept if pair.upstream_split == "train"]
    commits = {pair.commit_link.lower() for pair in train} - {""}
    repositories = {repository_of(pair.commit_link) for pair in train} - {""}
    tasks: list[Task] = []
    origins: Counter[str] = Counter()
    for pair in kept:
        faults = list(pair.faults)
        if squeeze(pair.secure) in vulnerable or squeeze(pair.vulnerable) in secure:
            faults.append(BOTH_LABELS)
        if max_chars is not None and max(len(pair.secure), len(pair.vulnerable)) > max_chars:
            faults.append(too_long(max_chars))
        if pair.upstream_split == "val":
            if pair.commit_link.lower() in commits:
                faults.append(LEAK_COMMIT)
            elif repository_of(pair.commit_link) in repositories:
                faults.append(LEAK_REPOSITORY)
        task = _task(pair, faults, comment, lines)
        if task is None:
            continue
        origins[task.meta["prompt_from"]] += 1
        tasks.append(task)
        lines += [
            ReportLine(task.id, "flagged", fault, pair.where) for fault in task.meta["faults"]
        ]
    return tasks, lines, _remarks(pairs, tasks, origins)


def _drop_empty(pairs: list[Pair], lines: list[ReportLine]) -> list[Pair]:
    kept: list[Pair] = []
    first: dict[tuple[str, str], str] = {}
    for pair in pairs:
        reason, detail = "", ""
        if pair.language is None:
            reason, detail = NO_LANGUAGE, pair.file_name
        elif pair.secure == pair.vulnerable:
            reason = IDENTICAL
        elif squeeze(pair.secure) == squeeze(pair.vulnerable):
            reason = WHITESPACE
        elif (pair.secure, pair.vulnerable) in first:
            reason, detail = DUPLICATE, f"of {first[pair.secure, pair.vulnerable]}"
        if reason:
            lines.append(ReportLine(pair.id, "dropped", reason, pair.where, detail))
        else:
            first[pair.secure, pair.vulnerable] = pair.id
            kept.append(pair)
    return kept


def _task(pair: Pair, faults: list[str], comment: bool, lines: list[ReportLine]) -> Task | None:
    secure, vulnerable, given = pair.secure, pair.vulnerable, pair.given
    meta: dict[str, Any] = {
        "file_name": pair.file_name,
        "func_name": pair.name,
        "commit_link": pair.commit_link,
        **pair.meta,
    }
    language = pair.language or ""
    if language == "python":
        # A method cut out of its class is indented as a whole, which no parser takes.
        indent = indent_of(secure)
        if indent and indent_of(vulnerable) == indent:
            secure, vulnerable = dedent(secure, indent), dedent(vulnerable, indent)
            given = None if given is None else dedent(given, indent)
            meta["dedented"] = indent
        faults += [] if parses(secure) else [NO_PARSE_SECURE]
        faults += [] if parses(vulnerable) else [NO_PARSE_VULNERABLE]
    cut = cut_pair(
        secure,
        vulnerable,
        language,
        given=given,
        comment=pair.description if comment else "",
        name=pair.description or pair.name,
    )
    if cut is None:
        lines.append(ReportLine(pair.id, "dropped", NO_PROMPT, pair.where))
        return None
    try:
        return make_task(
            id=pair.id,
            language=language,
            cwe=pair.cwe,
            prompt=cut.prompt,
            golden=cut.golden,
            vulnerable=cut.vulnerable,
            split=_split(pair, faults),
            instruction=pair.description,
            notes=pair.notes,
            source=pair.source,
            license=pair.license,
            meta={**meta, "prompt_from": cut.prompt_from, "faults": faults},
        )
    except TaskError as error:
        lines.append(ReportLine(pair.id, "dropped", UNUSABLE, pair.where, str(error)))
        return None


def _split(pair: Pair, faults: list[str]) -> str:
    leaks = LEAK_COMMIT in faults or LEAK_REPOSITORY in faults
    return "eval" if pair.upstream_split == "val" and not leaks else "train"


def _remarks(pairs: list[Pair], tasks: list[Task], origins: Counter[str]) -> list[str]:
    remarks = []
    if origins:
        ways = ", ".join(f"{name} {count}" for name, count in origins.most_common())
        remarks.append(f"prompts taken from: {ways}")
    dedented = sum(1 for task in tasks if "dedented" in task.meta)
    if dedented:
        remarks.append(f"python methods whose common indentation was removed: {dedented}")
    splits = {pair.upstream_split for pair in pairs}
    if {"train", "val"} <= splits:
        moved = sum(
            1
            for task in tasks
            if LEAK_COMMIT in task.meta["faults"] or LEAK_REPOSITORY in task.meta["faults"]
        )
        left = sum(1 for task in tasks if task.split == "eval")
        remarks.append(
            f"validation pairs moved into split train because train holds their repository: "
            f"{moved}; left in split eval: {left}"
        )
    elif splits & {"train", "val"}:
        remarks.append(
            "leaks between train and val were not looked for: only one of the two was read "
            "(give the folder that holds both)"
        )
    return remarks
