"""Where to branch: risk nodes on the golden path.

``root``: the end of the prompt. ``annotated``: a line given with the data. ``diff``: where the
golden and the vulnerable answer part. ``sink``: a structural rule of the task's CWE matches a
risky API (see :mod:`treeplay.judge.rules`). ``probe``: rollouts of the opponent show that a
statement decides (:mod:`treeplay.nodes_probe`). ``llm``: a language model names the line
(:mod:`treeplay.nodes_llm`). Every node sits on a token boundary of the golden ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from treeplay.judge.cwe import cwe_matches
from treeplay.judge.rules import find_sinks
from treeplay.policy.model import TokenPath
from treeplay.tasks.answer import statement_ends
from treeplay.tasks.decision import parting
from treeplay.tasks.notes import place_notes
from treeplay.tasks.task import Task
from treeplay.tree import Node, Source

NodeSource = Literal["root", "annotated", "diff", "sink", "probe", "llm"]
# Sources that cost something: they are asked by a stage of their own (see treeplay.nodes_learn).
LEARNT: tuple[NodeSource, ...] = ("probe", "llm")
Risk = tuple[int, str | None]  # (character offset in the golden answer, CWE)


@dataclass(frozen=True)
class ProbeConfig:
    """``rollouts`` from a state, at most ``states`` of them a task; ``spans``: so many stretches of
    a task's statements are halved at once; ``drop``: the least difference that a statement must
    make to the share of vulnerable rollouts."""

    rollouts: int = 4
    states: int = 8
    spans: int = 2
    drop: float = 0.1


@dataclass(frozen=True)
class NodeConfig:
    """``sources`` in order of precedence; ``place``: at the start of the statement that holds the
    risk, at the risky token itself, or both; ``per_task``: at most so many nodes a task. ``llm``: a
    YAML file that describes the endpoint of source ``llm``, "" for the environment alone."""

    sources: tuple[NodeSource, ...] = ("diff", "sink", "annotated")
    place: Literal["statement", "token", "both"] = "both"
    per_task: int = 3
    probe: ProbeConfig = ProbeConfig()
    llm: str = ""


def find_nodes(
    task: Task,
    path: TokenPath,
    config: NodeConfig,
    learnt: Mapping[str, Iterable[Risk]] | None = None,
) -> list[Node]:
    """Risk nodes of ``task`` on its golden ``path``, in token order, one a position.

    ``path`` is the tokenised prompt and golden answer (:func:`~treeplay.policy.model.encode_path`).
    ``learnt``: what the sources of :data:`LEARNT` found. Returns no nodes where no source finds
    any, or where the task has no golden answer.
    """
    if task.golden is None:
        return []
    chosen: dict[int, tuple[int, Source, str | None]] = {}
    for source in config.sources:
        found = (learnt or {}).get(source, ()) if source in LEARNT else _risks(task, source)
        for char, cwe in found:
            for offset in [0] if source == "root" else _places(task, char, config.place):
                position = boundary(path, offset)
                chosen.setdefault(position, (path.starts[position], source, cwe))
        if len(chosen) >= config.per_task:
            break
    first = sorted(list(chosen)[: config.per_task])
    return [
        Node(number, None, position, *chosen[position]) for number, position in enumerate(first)
    ]


def boundary(path: TokenPath, offset: int) -> int:
    """The token that holds character ``offset`` of the answer, as an index into ``path.ids``.

    White space before a word is part of the word's token in most vocabularies, so a branch there
    begins with its own white space, just as the golden path does.
    """
    position = path.n_prompt
    for index in range(path.n_prompt, len(path.ids)):
        # The bytes of one character may be tokens of their own, with one start: take the first.
        if path.starts[position] < path.starts[index] <= offset:
            position = index
    return position


def _risks(task: Task, source: NodeSource) -> Iterator[Risk]:
    """(character offset in the golden answer, CWE) of each risk that ``source`` sees."""
    golden = task.golden or ""
    first_cwe = task.cwe[0] if task.cwe else None
    if source == "root":
        yield 0, first_cwe
    elif source == "annotated":
        for item in place_notes(task).placed:
            yield item.char_start, item.note.cwe or first_cwe
    elif source == "diff" and task.vulnerable is not None and task.vulnerable != golden:
        yield parting(golden, task.vulnerable), first_cwe
    elif source == "sink":
        begin = len(task.prompt)
        for sink in find_sinks(task.language, task.program(golden)):
            inside = begin <= sink.char_start < begin + len(golden)
            if inside and any(cwe_matches(found, want) for found in sink.cwe for want in task.cwe):
                yield sink.char_start - begin, first_cwe


def _places(task: Task, char: int, place: str) -> list[int]:
    if place == "token":
        return [char]
    start = statement_start(task, task.golden or "", char)
    return [start] if place == "statement" else [start, char]


def statement_start(task: Task, answer: str, char: int) -> int:
    """Offset of the first character, white space left out, of the statement that holds ``char``."""
    start = 0
    for end in statement_ends(task, answer):
        if end > char:
            break
        start = end
    return start + len(answer[start:]) - len(answer[start:].lstrip())
