"""SecurityEval (s2e-lab/SecurityEval, dataset.jsonl): Python prompts, each insecurely completed."""

from __future__ import annotations

from pathlib import Path

from treeplay.errors import TaskError
from treeplay.tasks.importers.pairs import DUPLICATE, NO_PARSE_VULNERABLE, UNUSABLE
from treeplay.tasks.importers.reading import (
    NO_LICENSE,
    Located,
    cwe_names,
    find_inputs,
    read_records,
    text_of,
    text_or_none,
)
from treeplay.tasks.importers.report import ImportResult, ReportLine, make_report
from treeplay.tasks.importers.signature import parses
from treeplay.tasks.task import Task, make_task

PATTERNS = ("securityeval*.jsonl", "dataset.jsonl", "*.jsonl")
NO_PREFIX = "insecure code does not begin with the prompt"


def load(path: str | Path, max_chars: int | None) -> ImportResult:
    """Every prompt, split "eval". There is no golden; the insecure completion is ``vulnerable``
    where the insecure code begins with the prompt, else it is kept whole in
    ``meta["vulnerable_program"]`` and flagged."""
    del max_chars  # the set has no long items
    files = find_inputs(path, PATTERNS, "SecurityEval's dataset.jsonl")
    read = 0
    tasks: list[Task] = []
    lines: list[ReportLine] = []
    first: dict[tuple[str, str | None], str] = {}
    for file in files:
        for located in read_records(file):
            read += 1
            task = _task(located, first, lines)
            if task is not None:
                tasks.append(task)
    return make_report("securityeval", read, tasks, lines)


def _task(
    located: Located, first: dict[tuple[str, str | None], str], lines: list[ReportLine]
) -> Task | None:
    data, where = located.data, located.where
    if located.is_record:
        name = text_of(data, "id", where)
        prompt, insecure = text_of(data, "prompt", where), text_or_none(data, "vulnerable", where)
        license_name = text_of(data, "license", where, "")
    else:
        name = f"securityeval/{text_of(data, 'ID', where)}"
        prompt, insecure = text_of(data, "Prompt", where), text_of(data, "Insecure_code", where)
        license_name = NO_LICENSE
    if (prompt, insecure) in first:
        detail = f"of {first[prompt, insecure]}"
        lines.append(ReportLine(name, "dropped", DUPLICATE, where, detail))
        return None
    first[prompt, insecure] = name
    answer = None if insecure is None else _after_prompt(prompt, insecure)
    faults = []
    if insecure is not None and answer is None:
        faults.append(NO_PREFIX)
    if insecure is not None and not parses(insecure):
        faults.append(NO_PARSE_VULNERABLE)
    try:
        task = make_task(
            id=name,
            language="python",
            cwe=cwe_names(name) or cwe_names(data.get("cwe")),
            prompt=prompt.rstrip(),
            vulnerable=answer,
            split="eval",
            source="securityeval",
            license=license_name,
            meta={"vulnerable_program": insecure, "faults": faults},
        )
    except TaskError as error:
        lines.append(ReportLine(name, "dropped", UNUSABLE, where, str(error)))
        return None
    lines += [ReportLine(name, "flagged", fault, where) for fault in faults]
    return task


def _after_prompt(prompt: str, code: str) -> str | None:
    """What follows the prompt (without the white space that ends it) in the code.

    White space at line ends is left out of account."""
    prompt = prompt.rstrip()
    if code.startswith(prompt):
        return code[len(prompt) :]
    want = [line.rstrip() for line in prompt.split("\n")]
    lines = code.split("\n")
    if [line.rstrip() for line in lines[: len(want)]] != want:
        return None
    return "\n" + "\n".join(lines[len(want) :])
