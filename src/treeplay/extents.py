"""How far a continuation is learnt: to the end of the statement that decides, or of the answer."""

from __future__ import annotations

from typing import Literal

from treeplay.closing import closed
from treeplay.grow import line_offset
from treeplay.policy.model import Policy, encode_path
from treeplay.tasks.answer import statement_ends
from treeplay.tasks.decision import parting
from treeplay.tasks.task import Task
from treeplay.tree import Branch, Node, Tree

Extent = Literal["local", "full"]


def golden_extent(
    policy: Policy, task: Task, tree: Tree, node: Node, extent: Extent
) -> tuple[int, ...]:
    """Golden token ids from the node to the end of its statement, or of the closed answer."""
    first = node.position - len(tree.prompt_ids)
    if extent == "full":
        return closed(policy, task, tree.golden_ids)[first:]
    end = _statement_end(task, tree.golden, node.offset)
    return _up_to(tree.golden_ids, tree.golden_starts, end)[first:]


def given_extent(
    policy: Policy, task: Task, tree: Tree, node: Node, extent: Extent
) -> tuple[int, ...]:
    """The same of the vulnerable answer that the task comes with, to the end of the statement that
    it parts from the golden one in; () where there is none, or it does not come by the node (one on
    the golden path) token for token."""
    if task.vulnerable is None:
        return ()
    path = encode_path(policy, task, task.vulnerable)
    if path.ids[: node.position] != tree.prefix(node):
        return ()
    first = node.position - path.n_prompt
    ids, starts = path.ids[path.n_prompt :], path.starts[path.n_prompt :]
    if extent == "full":
        return closed(policy, task, ids)[first:]
    at = max(node.offset, parting(tree.golden, task.vulnerable))
    return _up_to(ids, starts, _statement_end(task, task.vulnerable, at))[first:]


def branch_extent(
    policy: Policy, task: Task, tree: Tree, branch: Branch, extent: Extent
) -> tuple[int, ...]:
    """A branch's token ids to the end of the statement that decides (the first finding's, else
    the first), or of the answer. The full extent is closed as golden answers are, with the model's
    own end mark where it set one, unless the token budget ran out. A grafted branch wrote one
    statement; what follows it is golden, even where a finding lies there."""
    node = tree.nodes[branch.node]
    grafted = is_grafted(node, branch)
    if extent == "full" and not grafted:
        if branch.ended == "eos":
            return branch.ids
        ids = _up_to(branch.ids, branch.starts, len(branch.answer))
        if branch.ended == "length" or not ids:
            return ids
        before = tree.prefix(node)[len(tree.prompt_ids) :]
        return closed(policy, task, before + ids)[len(before) :]
    at = node.offset
    verdict = branch.verdict
    if verdict and verdict.label == "vulnerable" and verdict.findings and not grafted:
        at = max(at, line_offset(task, branch.answer, verdict.findings[0].line_start))
    end = _statement_end(task, branch.answer, at)
    return _up_to(branch.ids, branch.starts, end)


def is_grafted(node: Node, branch: Branch) -> bool:
    """Whether the opponent wrote one statement and the golden rest follows it."""
    return branch.completion == "graft" and node.branch is None


def _statement_end(task: Task, answer: str, offset: int) -> int:
    """Where the statement that holds ``offset`` ends, its line break left out."""
    for end in statement_ends(task, answer):
        if end > max(offset, 0):
            return len(answer[:end].rstrip())
    return len(answer.rstrip())


def _up_to(ids: tuple[int, ...], starts: tuple[int, ...], end: int) -> tuple[int, ...]:
    return tuple(token for token, start in zip(ids, starts, strict=True) if start < end)
