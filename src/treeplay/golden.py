"""Golden paths without references: the opponent's own answers that judge and tests accept.

``self``: whole answers are sampled for every task and judged; an accepted one is the golden path,
by the token ids it was sampled with, and the trie of all of them (:mod:`treeplay.trie`) gives the
first risk nodes and their branches. ``repair``: the model is shown a vulnerable answer of its own
with what was found, and asked for a mended one, several times over; the accepted one is the golden
path (after HexaCoder, arXiv 2409.06446, which trains on a larger model's repairs, and RefleXGen,
arXiv 2510.23674, in which a model mends its own). References that tasks bring along are seen by the
judge alone.

The stage that puts this together is :mod:`treeplay.golden_stage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from treeplay.grow import GrowConfig
from treeplay.judge.cwe import cwe_name
from treeplay.judge.judge import located
from treeplay.judge.verdict import Finding
from treeplay.nodes import NodeConfig, find_nodes
from treeplay.policy.model import Policy, TokenPath, encode_path
from treeplay.policy.sample import SampleConfig
from treeplay.sandbox import Sandbox
from treeplay.tasks.task import Task
from treeplay.tree import Branch, Node, Tree, tree_from_json, tree_to_json
from treeplay.trie import Path, accepted, nearest, path_of, trie, vulnerable

GoldenSource = Literal["reference", "self", "repair"]
HASH_COMMENTS = ("python", "ruby")
SHOWN = 3  # findings that a request for a repair names


@dataclass(frozen=True)
class GoldenConfig(SampleConfig):
    """``source`` of the golden paths: the tasks' references, the opponent's own accepted answers,
    or its repairs of its own vulnerable ones. ``samples`` whole answers a task, drawn as the
    inherited fields say (``max_tokens`` each). For ``repair``: ``attempts`` times, each task that
    has no golden path yet is asked for ``mends`` repairs of one vulnerable answer."""

    source: GoldenSource = "reference"
    max_tokens: int = 256
    samples: int = 16
    attempts: int = 3
    mends: int = 4


@dataclass(frozen=True)
class Own:
    """What the opponent made of a task. ``samples``: a tree whose branches are its whole answers;
    ``golden``: the path chosen, None where no answer was accepted; ``mended``: it is a repair."""

    samples: Tree
    golden: Path | None = None
    mended: bool = False


def rooted(task: Task, prompt_ids: tuple[int, ...]) -> Tree:
    """A tree to sample whole answers of ``task`` from: a prompt, and the root as its only node."""
    root = Node(0, None, len(prompt_ids), 0, "root", task.cwe[0] if task.cwe else None)
    return Tree(task.id, prompt_ids, (), (), "", (root,), ())


def whole(config: GoldenConfig, count: int) -> GrowConfig:
    """How whole answers are grown on a :func:`rooted` tree."""
    return GrowConfig(
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        rows_at_once=config.rows_at_once,
        branches=count,
        completion="model",
    )


def choose(samples: Tree) -> Own:
    """An accepted answer as the golden path: the one that parts latest from the vulnerable ones."""
    good = [branch for branch in samples.branches if accepted(branch)]
    bad = [branch for branch in samples.branches if vulnerable(branch)]
    return Own(samples, path_of(nearest(good, bad)) if good else None)


def mistakes(samples: Tree) -> list[Branch]:
    """Different vulnerable answers that end, the most frequent first."""
    bad = [b for b in samples.branches if vulnerable(b) and b.ended != "length"]
    times: dict[str, list[Branch]] = {}
    for branch in bad:
        times.setdefault(branch.answer, []).append(branch)
    return [same[0] for same in sorted(times.values(), key=lambda same: -len(same))]


def request(policy: Policy, task: Task, wrong: Branch, sandbox: Sandbox) -> Task:
    """``task`` asked as a repair of the vulnerable answer ``wrong``; the answer follows the task's
    own prompt, as ever.

    A model with a chat template is told what was found; any other reads the program, a comment that
    says so, and the beginning of the program again. Lines are those of the program.
    """
    found = _told(task, wrong, sandbox)
    program = task.program(wrong.answer).strip("\n")
    if policy.style == "chat":
        wish = task.instruction or "Complete this code."
        return replace(
            task,
            instruction=(
                f"{wish}\n\nThis answer has a security weakness:\n\n"
                f"```{task.language}\n{program}\n```\n\n"
                + "".join(f"- {line}\n" for line in found)
                + "\nWrite the code again without the weakness; it must still do its job."
            ),
        )
    mark = "#" if task.language in HASH_COMMENTS else "//"
    remarks = ["The code above has a security weakness:", *found, "The same code without it:"]
    head = program + "\n\n" + "".join(f"{mark} {line}\n" for line in remarks) + "\n"
    return replace(task, prompt=head + task.prompt)


def _told(task: Task, wrong: Branch, sandbox: Sandbox) -> list[str]:
    """What was found in a vulnerable answer, a line each, without a look at any reference."""
    bare = replace(task, golden=None, vulnerable=None)
    verdict = located(bare, wrong.answer, wrong.verdict, sandbox) if wrong.verdict else None
    lines = []
    for finding in (verdict.findings if verdict else ())[:SHOWN]:
        name = cwe_name(finding.cwe) if finding.cwe else ""
        weakness = f"{finding.cwe} ({name})" if name else finding.cwe or "a weakness"
        message = " ".join(finding.message.split())
        lines.append(f"{_where(task, finding)}{weakness}: {message}")
    return lines


def _where(task: Task, finding: Finding) -> str:
    """The line of a finding, where more than the answer's beginning is known of it."""
    first = task.prompt.count("\n") + 1
    if finding.tool == "tests" and finding.line_start <= first + 1:
        return ""
    return f"line {finding.line_start}: "


def mended_path(policy: Policy, task: Task, asked: Task, mend: Branch) -> Path:
    """An accepted repair as a golden path behind the task's own prompt.

    Its sampled ids are used where they were sampled behind the prompt's own tokens (whatever stood
    before them); else the text is tokenised, once, as a reference would be.
    """
    own = encode_path(policy, task)
    inside = sum(start >= -len(task.prompt) for start in own.starts)
    # The first token of the prompt may be joined with what stands before it.
    tail = max(1, inside - 1)
    if encode_path(policy, asked).ids[-tail:] == own.ids[-tail:]:
        return path_of(mend)
    path = encode_path(policy, task, mend.answer)
    return Path(path.ids[path.n_prompt :], path.starts[path.n_prompt :], mend.answer)


def plant_own(
    policy: Policy, task: Task, own: Own, config: NodeConfig, with_trie: bool
) -> Tree | None:
    """The tree of a task's own golden path, None where there is none.

    Its nodes are those of the trie of samples (where ``with_trie``) with their branches, then what
    ``config.sources`` find elsewhere on the golden path. For ``diff``, the vulnerable answer is the
    sample that parts latest from the golden path.
    """
    if own.golden is None:
        return None
    tree = trie(own.samples, own.golden)
    bad = [branch for branch in own.samples.branches if vulnerable(branch)]
    likest = _likest(own.golden, bad)
    if not with_trie:
        tree = replace(tree, nodes=(), branches=())
    prompt = encode_path(policy, task)
    path = TokenPath(
        tree.prompt_ids + tree.golden_ids, prompt.n_prompt, prompt.starts + tree.golden_starts
    )
    planted = replace(own_task(task, tree), vulnerable=likest)
    known = {node.position for node in tree.nodes if node.branch is None}
    more = [node for node in find_nodes(planted, path, config) if node.position not in known]
    first = len(tree.nodes)
    nodes = [replace(node, id=first + number) for number, node in enumerate(more)]
    return replace(tree, nodes=(*tree.nodes, *nodes))


def _likest(golden: Path, bad: Sequence[Branch]) -> str | None:
    """The vulnerable answer that keeps longest to the golden one."""
    if not bad:
        return None
    whole = Branch(-1, 0, golden.ids, (), golden.starts, golden.text, golden.text, "model", "eos")
    return nearest(bad, [whole]).answer


def own_task(task: Task, tree: Tree) -> Task:
    """``task`` with its tree's golden path for its only reference."""
    return replace(task, golden=tree.golden, vulnerable=None)


def relocated(task: Task, own: Own, sandbox: Sandbox) -> Own:
    """``own`` with the lines of its findings as they are now that a golden answer is known."""
    if own.golden is None:
        return own
    known = replace(task, golden=own.golden.text, vulnerable=None)
    branches = tuple(
        replace(branch, verdict=located(known, branch.answer, branch.verdict, sandbox))
        if branch.verdict is not None
        else branch
        for branch in own.samples.branches
    )
    return replace(own, samples=replace(own.samples, branches=branches))


def own_to_json(own: Own) -> dict[str, Any]:
    """A line of ``golden.jsonl``."""
    golden = own.golden
    return {
        "task": own.samples.task,
        "accepted": golden is not None,
        "mended": own.mended,
        "golden": golden and {"ids": golden.ids, "starts": golden.starts, "text": golden.text},
        "samples": tree_to_json(own.samples),
    }


def own_from_json(data: dict[str, Any]) -> Own:
    found = data["golden"]
    golden = found and Path(tuple(found["ids"]), tuple(found["starts"]), found["text"])
    return Own(tree_from_json(data["samples"]), golden or None, data["mended"])
