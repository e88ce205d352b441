"""Grow trees: the opponent continues from every risk node; then late mistakes get nodes too.

plant (golden path + nodes) -> grow (branches of the nodes that have none) -> [judge]
    -> deepen (nodes on branches that went wrong late) -> grow -> [judge] ...
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from treeplay.errors import TaskError
from treeplay.nodes import NodeConfig, find_nodes
from treeplay.policy.model import Policy, check_room, decode, encode_path
from treeplay.policy.sample import Request, Row, Sample, SampleConfig, sample, seed_of
from treeplay.policy.trunks import Kept
from treeplay.tasks.answer import cut_answer, statement_ends
from treeplay.tasks.task import Task
from treeplay.tree import Branch, Completion, Node, Tree


@dataclass(frozen=True)
class GrowConfig(SampleConfig):
    """``branches`` a node (the paper's M); how a branch becomes a whole answer; ``depth``: 1 grows
    the golden path's nodes only, each further level follows mistakes made later on a branch.

    ``adaptive`` above 0: ``branches`` is the most, sampled ``wave`` by wave and judged in between;
    a node gets no more once it has two secure and two vulnerable branches, or once the 95 %
    interval of its vulnerable share (of secure and vulnerable ones) is narrower than ``adaptive``.
    ``budget`` above 0: waves end when as many tokens were sampled in the round, as nearly as whole
    waves come. ``keep_mb``: memory for keys and values of golden paths that later waves and levels
    sample behind again.
    """

    branches: int = 8
    completion: Completion = "graft"
    depth: int = 1
    adaptive: float = 0.0
    wave: int = 4
    budget: int = 0
    keep_mb: int = 1024


def missing(tree: Tree, node: Node, config: GrowConfig) -> int:
    """How many branches are to be sampled at ``node`` next; 0 where it has what it needs, as a node
    of a trie of samples always does."""
    if node.source == "trie":
        return 0
    have = [branch.verdict for branch in tree.branches if branch.node == node.id]
    if not config.adaptive and not config.budget:
        # A node found by probing has rollouts already, which count; others get all at once.
        probed = node.branch is None and any(p.position == node.position for p in tree.probes)
        return max(0, config.branches - len(have)) if probed or not have else 0
    if config.adaptive:
        labels = [verdict.label for verdict in have if verdict is not None]
        vulnerable, secure = labels.count("vulnerable"), labels.count("secure")
        low, high = wilson(vulnerable, vulnerable + secure)  # what decides nothing tells nothing
        if min(vulnerable, secure) >= 2 or high - low < config.adaptive:
            return 0
    return max(0, min(config.wave, config.branches - len(have)))


def spent(before: Sequence[Tree], now: Sequence[Tree], budget: int) -> bool:
    """Whether the trees' branches come nearer to ``budget`` tokens as they are than with another
    wave like the last one, which began at ``before``. Never, where ``budget`` is 0."""
    first, last = (
        sum(len(branch.ids) for tree in trees for branch in tree.branches)
        for trees in (before, now)
    )
    return budget > 0 and last + (last - first) / 2 > budget


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share, 95 % by default; (0, 1) where ``count`` is 0."""
    if count == 0:
        return 0.0, 1.0
    share, weight = hits / count, z * z / count
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def plant(policy: Policy, task: Task, config: NodeConfig, room: int) -> Tree:
    """The golden path of ``task`` with its risk nodes, and no branches yet.

    ``room``: how many tokens a branch may add. Raises :class:`TaskError` where prompt, golden
    answer and a branch do not fit into the model's context.
    """
    golden = task.golden or ""
    path = encode_path(policy, task, golden)
    check_room(policy, task, path, room, "grow.max_tokens")
    return Tree(
        task.id,
        path.ids[: path.n_prompt],
        path.ids[path.n_prompt :],
        path.starts[path.n_prompt :],
        golden,
        tuple(find_nodes(task, path, config)),
        (),
    )


def grow(
    policy: Policy,
    tasks: Sequence[Task],
    trees: Sequence[Tree],
    config: GrowConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    kept: Kept | None = None,
    mine: Callable[[str, int, int], bool] | None = None,
) -> list[Tree]:
    """Sample continuations at every node that has too few (:func:`missing`).

    A branch's randomness depends on (seed, task, node, its number there) alone, so branches
    sampled in waves are the first of those that are sampled at once. ``kept`` keeps golden paths'
    keys and values from call to call. ``mine(task, node, number)`` says which branches are sampled
    here, of those that are missing (all, where it is not given). ``progress`` gets the tokens and
    the trees finished since its last call. Raises :class:`TaskError` for a node before the first
    token.
    """
    targets: list[tuple[int, Node, int]] = []  # (tree, node, number), in row order
    requests: list[Request] = []
    for t, tree in enumerate(trees):
        counts = Counter(branch.node for branch in tree.branches)
        wanted = {
            node.id: [
                number
                for number in range(have, have + missing(tree, node, config))
                if mine is None or mine(tree.task, node.id, number)
            ]
            for node in tree.nodes
            for have in [counts[node.id]]
        }
        for trunk in sorted({n.branch for n in tree.nodes if wanted[n.id]}, key=str):
            rows = []
            for node in tree.nodes:
                if node.branch != trunk:
                    continue
                if node.position < 1:
                    raise TaskError(
                        f"task {tree.task!r} has a risk node before its first token, where no "
                        "model predicts anything; give the task a prompt"
                    )
                for number in wanted[node.id]:
                    rows.append(Row(node.position, seed_of(seed, tree.task, node.id, number)))
                    targets.append((t, node, number))
            last = max(row.position for row in rows)
            path = tree.path(trunk)[:last]
            requests.append(Request(path, tuple(rows), _stem(tree, config), tree.task))

    starts = iter(targets)
    row_targets = [[next(starts) for _ in request.rows] for request in requests]

    def done(request: int, row: int, ids: Sequence[int]) -> bool:
        t, node, _ = row_targets[request][row]
        text = _before(trees[t], node) + decode(policy, list(ids))
        return cut_answer(_scope(tasks[t], trees[t], node, config.completion), text).complete

    left = Counter(targets[0][0] for targets in row_targets)

    def told(tokens: int, whole: Iterable[int]) -> None:
        trees_of = Counter(row_targets[request][0][0] for request in whole)
        left.subtract(trees_of)
        if progress:
            progress(tokens, sum(not left[t] for t in trees_of))

    draw = policy.sampler or partial(sample, policy.model, kept=kept)
    samples = draw(requests, config, policy.stop_ids, done, told)
    new: list[list[Branch]] = [[] for _ in trees]
    for request_targets, request_samples in zip(row_targets, samples, strict=True):
        for (t, node, _), one in zip(request_targets, request_samples, strict=True):
            tree = trees[t]
            number = len(tree.branches) + len(new[t])
            new[t].append(_branch(policy, tasks[t], tree, node, number, one, config.completion))
    return [
        replace(tree, branches=tree.branches + tuple(add))
        for tree, add in zip(trees, new, strict=True)
    ]


def _stem(tree: Tree, config: GrowConfig) -> tuple[int, ...]:
    """What every path of the tree has in common with its golden path, if it is read again."""
    if config.depth == 1 and not config.adaptive and not config.budget:
        return ()
    last = max((node.position for node in tree.nodes if node.branch is None), default=0)
    return tree.path(None)[: max(0, last - 1)]


def deepen(tasks: Sequence[Task], trees: Sequence[Tree], room: int | None = None) -> list[Tree]:
    """Put a node where a judged branch went wrong later than in its first statement.

    One a branch, at the beginning of the statement that holds the first finding; only on branches
    of the deepest level so far, and only where no more than ``room`` tokens stand before it.
    """
    out = []
    for task, tree in zip(tasks, trees, strict=True):
        has_children = {node.branch for node in tree.nodes}
        nodes = list(tree.nodes)
        for branch in tree.branches:
            if branch.id in has_children or not branch.verdict or not branch.verdict.findings:
                continue
            if branch.verdict.label != "vulnerable":
                continue
            at = line_offset(task, branch.answer, branch.verdict.findings[0].line_start)
            node = tree.nodes[branch.node]
            ends = [e for e in statement_ends(task, branch.answer) if e > node.offset]
            start = max((e for e in ends if e <= at), default=0)
            position = next((i for i, s in enumerate(branch.starts) if s >= start), None)
            if start == 0 or not position:
                continue
            if room is not None and node.position + position > room:
                continue
            nodes.append(
                Node(
                    len(nodes),
                    branch.id,
                    node.position + position,
                    branch.starts[position],
                    "late",
                    branch.verdict.findings[0].cwe or node.cwe,
                )
            )
        out.append(replace(tree, nodes=tuple(nodes)))
    return out


def line_offset(task: Task, answer: str, line: int) -> int:
    """Character offset in ``answer`` of 1-based ``line`` of the whole program, not below 0."""
    program = task.prompt + answer
    at = 0
    for _ in range(line - 1):
        cut = program.find("\n", at)
        if cut < 0:
            break
        at = cut + 1
    return max(0, at - len(task.prompt))


def _before(tree: Tree, node: Node) -> str:
    """The answer's text before the node."""
    if node.branch is None:
        return tree.golden[: max(node.offset, 0)]
    branch = tree.branches[node.branch]
    parent = tree.nodes[branch.node]
    return (_before(tree, parent) + branch.text)[: node.offset]


def _scope(task: Task, tree: Tree, node: Node, completion: Completion) -> Task:
    """``task`` with its answer ending where a branch of ``node`` ends."""
    if completion == "model" or node.branch is not None:
        return task
    index, _ = _statement(task, tree.golden, node.offset)
    return replace(task, statements=index + 1)


def _statement(task: Task, answer: str, offset: int) -> tuple[int, int]:
    """(index, end offset) of the answer's statement that holds ``offset``."""
    ends = statement_ends(task, answer)
    for index, end in enumerate(ends):
        if end > offset:
            return index, end
    return max(len(ends) - 1, 0), len(answer)


def _branch(
    policy: Policy,
    task: Task,
    tree: Tree,
    node: Node,
    number: int,
    one: Sample,
    completion: Completion,
) -> Branch:
    before = _before(tree, node)
    text = decode(policy, one.ids)
    starts = tuple(len(before) + len(decode(policy, one.ids[:i])) for i in range(len(one.ids)))
    answer = cut_answer(_scope(task, tree, node, completion), before + text).text
    if completion == "graft" and node.branch is None:
        _, end = _statement(task, tree.golden, node.offset)
        rest = tree.golden[end:]
        if rest and not answer.endswith("\n"):
            answer += "\n"
        answer += rest
    return Branch(number, node.id, one.ids, one.logps, starts, text, answer, completion, one.ended)
