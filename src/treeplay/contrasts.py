"""From judged trees to training examples: one function a method.

A contrast is a state (``prefix``), a continuation to prefer (``chosen``) and one to disprefer
(``rejected``, empty for supervised methods), all as token ids. What is never done: reject a branch
that the judge found secure; prefer one that fails the functional tests; learn from an unknown one;
learn from an invalid or inert one unless ``broken`` asks for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from treeplay.anchors import golden_anchor
from treeplay.closing import closed
from treeplay.contrast import Contrast, ContrastConfig
from treeplay.errors import TaskError
from treeplay.extents import (
    Extent,
    branch_extent,
    given_extent,
    golden_extent,
    is_grafted,
)
from treeplay.policy.model import Policy, encode_path
from treeplay.tasks.task import Task
from treeplay.tokens_changed import changed_mask, changed_spans
from treeplay.tree import Branch, Node, Tree
from treeplay.trie import Path, mistake
from treeplay.values import share_at, value_of_choice

Ids = tuple[int, ...]
By = dict[Ids, list[str]]  # continuations, and who sampled each, every time

# Methods that learn from a given vulnerable answer.
NEEDS_VULNERABLE = ("dpo", "safecoder", "sven")
# Methods whose contrasts are the golden answers' likelihood already.
WITHOUT_ANCHOR = ("sft",)


@dataclass(frozen=True)
class Drawn:
    """The contrasts, and how many branches of each label were and were not used."""

    contrasts: tuple[Contrast, ...]
    counts: dict[str, int]


Draw = Callable[[Policy, Task, Tree, ContrastConfig, "Counter[str]"], list[Contrast]]


def draw_contrasts(
    method: str,
    policy: Policy,
    tasks: Sequence[Task],
    trees: Sequence[Tree],
    config: ContrastConfig,
) -> Drawn:
    """All contrasts of ``method`` (a key of :data:`METHODS`) over trees of ``tasks``."""
    counts: Counter[str] = Counter()
    out: list[Contrast] = []
    for task, tree in zip(tasks, trees, strict=True):
        drawn = METHODS[method](policy, task, tree, config, counts)
        if config.anchor and tree.golden_ids and method not in WITHOUT_ANCHOR:
            counts["anchors"] += 1
            drawn.insert(0, golden_anchor(policy, task, tree, config, drawn))
        out += drawn
    counts["contrasts"] = len(out)
    return Drawn(tuple(out), dict(counts))


def tsp(
    policy: Policy, task: Task, tree: Tree, config: ContrastConfig, counts: Counter[str]
) -> list[Contrast]:
    """Tree-like self-play: at each node, its secure continuations against its vulnerable ones."""
    out: list[Contrast] = []
    for node in tree.nodes:
        here = [b for b in tree.branches if b.node == node.id and b.verdict is not None]
        counts.update(f"branches_{b.verdict.label}" for b in here if b.verdict)
        good, bad, broken, secure = _sides(policy, task, tree, node, here, config, counts)
        # The same tokens can end well and badly (a late mistake): then they decide nothing here.
        both = bad.keys() & (good.keys() | secure)
        # Nor may what the golden path writes itself be pushed down: a vulnerable answer that keeps
        # to it so far went wrong elsewhere. (Behind a chosen side that goes on the same way it is
        # not: what they share cancels.)
        both |= {ids for ids in bad if _golden(tree, node, ids) and not _begins(ids, {*good})}
        counts["undecided"] += len(both)
        chosen = [ids for ids in good if ids not in both]
        rejected = [ids for ids in bad if ids not in both]
        if not chosen:
            continue
        useless = [ids for ids in broken if ids not in bad and not _begins(ids, {*good, *secure})]
        if rejected:
            state = share_at(tree, node)
            weight = state.vulnerable / max(1, state.judged) if config.weights == "rate" else 1.0
            # Every side is met once, even where the other one has fewer.
            longer = max(len(chosen), len(rejected))
            pairs = islice(zip(cycle(chosen), cycle(rejected), strict=False), longer)
            new = [_contrast(tree, node, ids, other, weight, bad[other]) for ids, other in pairs]
            if config.weights == "value":
                new = _by_value(policy, task, tree, node, new, config)
                counts["without_a_drop"] += sum(not contrast.weight for contrast in new)
            # A given mistake that the opponent never makes weighs nothing by its rate.
            out += [contrast for contrast in new if contrast.weight]
        out += [
            _contrast(tree, node, ids, other, config.broken, broken[other])
            for ids, other in zip(cycle(chosen), useless, strict=False)
        ]
    return out


def _sides(
    policy: Policy,
    task: Task,
    tree: Tree,
    node: Node,
    here: Sequence[Branch],
    config: ContrastConfig,
    counts: Counter[str],
) -> tuple[dict[Ids, None], By, By, set[Ids]]:
    """A node's continuations: (to prefer, vulnerable, broken, all that are secure)."""
    good: dict[Ids, None] = {}
    bad: By = {}
    broken: By = {}
    secure: set[Ids] = set()
    if node.branch is None:
        good[golden_extent(policy, task, tree, node, config.extent)] = None
        if config.given and (ids := given_extent(policy, task, tree, node, config.extent)):
            bad[ids] = []
            counts["given"] += 1
    elif node.source == "late":  # the branch that it sits on went wrong here
        trunk = tree.branches[node.branch]
        before = node.position - tree.nodes[trunk.node].position
        ids = branch_extent(policy, task, tree, trunk, config.extent)[before:]
        bad.setdefault(ids, []).append(trunk.opponent)
    for branch in here:
        verdict = branch.verdict
        useless = bool(config.broken) and _is_broken(node, branch, config.extent)
        if verdict is None or not (useless or verdict.label in ("vulnerable", "secure")):
            continue
        ids = branch_extent(policy, task, tree, branch, config.extent)
        if verdict.label == "vulnerable":
            bad.setdefault(ids, []).append(branch.opponent)
        elif verdict.label != "secure":
            broken.setdefault(ids, []).append(branch.opponent)
        else:
            secure.add(ids)
            if verdict.functional is False:
                counts["secure_but_failing"] += 1
            elif config.siblings or node.branch is not None:
                good[ids] = None
    for side in (good, bad, broken):
        side.pop((), None)
    return good, bad, broken, secure


def _contrast(
    tree: Tree, node: Node, chosen: Ids, rejected: Ids, weight: float, by: Sequence[str]
) -> Contrast:
    who = tuple(dict.fromkeys(name for name in by if name))
    prefix = tree.prefix(node)
    return Contrast(tree.task, node.id, prefix, chosen, rejected, weight, sampled_by=who)


def _is_broken(node: Node, branch: Branch, extent: Extent) -> bool:
    """Whether a branch is no use, and what is rejected of it is likely why: the program does not
    parse, or fails the functional tests. Not so where the text was cut off or ended by the model in
    the middle of a statement, nor of a first statement that others follow: the fault may lie in
    those. (Of a grafted statement it may lie in that the golden rest does not fit it.)"""
    verdict = branch.verdict
    if verdict is None or branch.ended == "length":
        return False
    grafted = is_grafted(node, branch)
    if (grafted and branch.ended != "answer") or (extent == "local" and not grafted):
        return False
    return verdict.label == "invalid" or (verdict.label == "inert" and verdict.functional is False)


def _begins(ids: Ids, others: set[Ids]) -> bool:
    """Whether one of ``others`` begins with ``ids``."""
    return any(other[: len(ids)] == ids for other in others)


def _golden(tree: Tree, node: Node, ids: Ids) -> bool:
    """Whether the golden path comes by ``node`` and goes on with ``ids``."""
    path = tree.prefix(node) + ids
    return (tree.prompt_ids + tree.golden_ids)[: len(path)] == path


def _by_value(
    policy: Policy,
    task: Task,
    tree: Tree,
    node: Node,
    contrasts: Sequence[Contrast],
    config: ContrastConfig,
) -> list[Contrast]:
    """Contrasts of a node with the weights of :mod:`treeplay.values`."""
    on_branch = node.branch is not None
    golden = () if on_branch else golden_extent(policy, task, tree, node, config.extent)
    full, prior = config.extent == "full", config.value_prior

    def worth(chosen: tuple[int, ...]) -> float:
        return value_of_choice(tree, node, chosen, golden, full=full, prior=prior)

    return [replace(contrast, weight=worth(contrast.chosen)) for contrast in contrasts]


def tsp_paper(
    policy: Policy, task: Task, tree: Tree, config: ContrastConfig, counts: Counter[str]
) -> list[Contrast]:
    """The paper's released pipeline: every branch is rejected, unseen by any judge, whole."""
    out = []
    for branch in tree.branches:
        node = tree.nodes[branch.node]
        rejected = branch_extent(policy, task, tree, branch, "full")
        chosen = golden_extent(policy, task, tree, node, "full")
        counts["branches_unjudged"] += 1
        # The golden continuation, ended or not: all that it could unlearn is to end, or to go on.
        bare = tree.golden_ids[node.position - len(tree.prompt_ids) :]
        ended = branch.ended == "eos" and rejected == branch.ids
        if rejected and rejected != chosen and (rejected[:-1] if ended else rejected) != bare:
            out.append(_contrast(tree, node, chosen, rejected, 1.0, [branch.opponent]))
    return out


def sft(
    policy: Policy, task: Task, tree: Tree, config: ContrastConfig, counts: Counter[str]
) -> list[Contrast]:
    """Supervised fine-tuning on the golden answer."""
    if not tree.golden_ids:
        return []
    whole = closed(policy, task, tree.golden_ids)
    return [Contrast(task.id, -1, tree.prompt_ids, whole, (), 1.0)]


def dpo(
    policy: Policy, task: Task, tree: Tree, config: ContrastConfig, counts: Counter[str]
) -> list[Contrast]:
    """The golden answer against the vulnerable one, whole."""
    wrong = _vulnerable(policy, task, tree, counts)
    if wrong is None:
        return []
    whole = closed(policy, task, tree.golden_ids)
    against = wrong.ids if wrong.cut else closed(policy, task, wrong.ids)
    return [Contrast(task.id, -1, tree.prompt_ids, whole, against, 1.0)]


def _vulnerable(policy: Policy, task: Task, tree: Tree, counts: Counter[str]) -> Path | None:
    """The vulnerable answer behind the prompt: the given one, or, where the golden path is the
    opponent's own, a sample of it. None, and counted, where there is none or nothing to prefer."""
    wrong = None
    if tree.golden_ids and task.vulnerable is None:
        wrong = mistake(tree)
    elif tree.golden_ids and task.vulnerable is not None:
        path = encode_path(policy, task, task.vulnerable)
        wrong = Path(path.ids[path.n_prompt :], path.starts[path.n_prompt :], task.vulnerable)
    counts["without_vulnerable_reference"] += wrong is None
    return wrong


def safecoder(
    policy: Policy, task: Task, tree: Tree, config: ContrastConfig, counts: Counter[str]
) -> list[Contrast]:
    """The two given answers, with masks of the tokens in which they differ."""
    wrong = _vulnerable(policy, task, tree, counts)
    if wrong is None:
        return []
    golden, vulnerable = tree.golden, wrong.text
    new = changed_mask(tree.golden_starts, len(golden), changed_spans(golden, vulnerable))
    old = changed_mask(wrong.starts, len(vulnerable), changed_spans(vulnerable, golden))
    if not any(new) and not any(old):
        counts["without_changed_tokens"] += 1
        return []
    masks = tuple(int(x) for x in new), tuple(int(x) for x in old)
    return [
        Contrast(
            task.id,
            -1,
            tree.prompt_ids,
            tree.golden_ids,
            wrong.ids,
            1.0,
            chosen_mask=masks[0],
            rejected_mask=masks[1],
        )
    ]


# SPIN is tsp_paper on a tree with the root for its only node and one branch. Methods that differ
# from tsp in their loss alone learn from its contrasts.
METHODS: dict[str, Draw] = {
    "tsp": tsp,
    "tsp-paper": tsp_paper,
    "sft": sft,
    "spin": tsp_paper,
    "dpo": dpo,
    "tdpo": tsp,
    "ipo": tsp,
    "simpo": tsp,
    "hinge": tsp,
    "safecoder": safecoder,
}


def check_references(method: str, tasks: Sequence[Task], data: str) -> None:
    """Raises :class:`TaskError` where ``method`` learns from vulnerable answers and no task of
    ``data`` has one."""
    if method in NEEDS_VULNERABLE and tasks and all(task.vulnerable is None for task in tasks):
        raise TaskError(
            f"method {method} learns from pairs of a secure and a vulnerable answer, but none of "
            f"the {len(tasks)} training tasks of {data} has a vulnerable one; give tasks with "
            "pairs (tasks.train), or choose a method that makes its own mistakes, such as tsp"
        )
