"""From judged trees to training examples: one function a method.

A contrast is a state (``prefix``), a continuation to prefer (``chosen``) and one to disprefer
(``rejected``, empty for supervised methods), all as token ids. What is never done: reject a branch
that the judge found secure; learn from an unknown one; learn from an invalid or inert one unless
``broken`` asks for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any, Literal

from treeplay.closing import closed
from treeplay.errors import TaskError
from treeplay.extents import Extent, branch_extent, golden_extent, is_grafted
from treeplay.policy.model import Policy, encode_path
from treeplay.tasks.task import Task
from treeplay.tokens_changed import changed_mask, changed_spans
from treeplay.tree import Branch, Node, Tree
from treeplay.trie import Path, mistake
from treeplay.values import value_of_choice

Weights = Literal["uniform", "rate", "value"]
Anchor = Literal["likelihood", "kl"]

# Methods that learn from a given vulnerable answer.
NEEDS_VULNERABLE = ("dpo", "safecoder", "sven")
# Methods whose contrasts are the golden answers' likelihood already.
WITHOUT_ANCHOR = ("sft",)


@dataclass(frozen=True)
class ContrastConfig:
    """``extent``: up to the end of the statement that decides, or of the answer. ``weights``:
    every contrast alike, by its node's measured vulnerable rate, or by how much the chosen side
    lowers that (:mod:`treeplay.values`; ``value_prior``: rollouts' worth of doubt). ``siblings``:
    also prefer the opponent's own secure branches, not the golden path alone. ``broken``: weight,
    whatever ``weights`` says, of contrasts against branches that do not parse or that fail the
    functional tests (0: none, as in the paper), so that no weakness is avoided by writing what does
    not work. ``anchor``: weight of what is learnt of every task's golden answer beside the
    contrasts (0: none); it keeps the player writing whole, working answers also where the opponent
    made no mistake to learn from.
    ``anchor_kind``: the answer's ``likelihood``, or the ``kl`` of the player from the opponent over
    prompt and answer, where no contrast asks for a change (see :func:`kl_anchor`). ``ordinary``: so
    many texts of ordinary code (:mod:`treeplay.ordinary`) are anchors too, of ``ordinary_kind`` and
    with ``ordinary_weight``, met once an epoch; each round draws its own. ``ordinary_text``: the
    texts as they are ``written``, or what the opponent answers where it is asked for them (its
    ``own``), so that the player goes on answering as it did."""

    extent: Extent = "local"
    weights: Weights = "uniform"
    siblings: bool = True
    broken: float = 0.0
    anchor: float = 0.0
    anchor_kind: Anchor = "likelihood"
    ordinary: int = 0
    ordinary_weight: float = 1.0
    ordinary_kind: Anchor = "kl"
    ordinary_text: Literal["written", "own"] = "written"
    value_prior: float = 1.0


@dataclass(frozen=True)
class Contrast:
    """One training example. ``chosen_opp`` and ``rejected_opp`` are the opponent's raw log-probs,
    a token each, once they have been scored.

    ``kl``: an anchor; the player is to stay close to the opponent where it predicts ``chosen``.
    The masks, a number of 0 or 1 a token, tell which tokens count in such an anchor and in the
    loss ``safecoder``; without one, all do. ``opponent`` is the player whose log-probs these are.
    """

    task: str
    node: int
    prefix: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    weight: float
    chosen_opp: tuple[float, ...] = ()
    rejected_opp: tuple[float, ...] = ()
    kl: bool = False
    chosen_mask: tuple[int, ...] = ()
    rejected_mask: tuple[int, ...] = ()
    opponent: str = ""


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
        bad: Counter[tuple[int, ...]] = Counter()
        broken: dict[tuple[int, ...], None] = {}
        good: dict[tuple[int, ...], None] = {}
        secure: set[tuple[int, ...]] = set()
        if node.branch is None:
            good[golden_extent(policy, task, tree, node, config.extent)] = None
        for branch in here:
            label = branch.verdict.label if branch.verdict else "unknown"
            if label == "vulnerable":
                bad[branch_extent(policy, task, tree, branch, config.extent)] += 1
            elif label == "secure":
                ids = branch_extent(policy, task, tree, branch, config.extent)
                secure.add(ids)
                if config.siblings or node.branch is not None:
                    good[ids] = None
            elif config.broken and _is_broken(node, branch, config.extent):
                broken[branch_extent(policy, task, tree, branch, config.extent)] = None
        for some in (bad, good, broken):
            some.pop((), None)
        # The same tokens can end well and badly (a late mistake): then they decide nothing here.
        both = set(bad) & (set(good) | secure)
        counts["undecided"] += len(both)
        chosen = [ids for ids in good if ids not in both]
        rejected = {ids: n for ids, n in bad.items() if ids not in both}
        if not chosen:
            continue
        prefix = tree.prefix(node)
        useless = [ids for ids in broken if ids not in bad and not _begins(ids, {*good, *secure})]
        against = [
            Contrast(task.id, node.id, prefix, ids, other, config.broken)
            for ids, other in zip(cycle(chosen), useless, strict=False)
        ]
        if not rejected:
            out += against
            continue
        judged = [b for b in here if b.verdict and b.verdict.label in ("secure", "vulnerable")]
        found, wrong = node.passed or (len(judged), sum(bad.values()))
        weight = wrong / max(1, found) if config.weights == "rate" else 1.0
        partner = cycle(chosen)
        new = [Contrast(task.id, node.id, prefix, next(partner), ids, weight) for ids in rejected]
        # Every secure continuation is met once even where mistakes are few.
        if len(chosen) > len(rejected):
            again = cycle(rejected)
            new += [
                Contrast(task.id, node.id, prefix, ids, next(again), weight)
                for ids in chosen[len(rejected) :]
            ]
        if config.weights == "value":
            new = _by_value(policy, task, tree, node, new, config)
            counts["without_a_drop"] += sum(not contrast.weight for contrast in new)
            new = [contrast for contrast in new if contrast.weight]
        out += new + against
    return out


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


def _begins(ids: tuple[int, ...], others: set[tuple[int, ...]]) -> bool:
    """Whether one of ``others`` begins with ``ids``."""
    return any(other[: len(ids)] == ids for other in others)


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


def golden_anchor(
    policy: Policy, task: Task, tree: Tree, config: ContrastConfig, beside: Sequence[Contrast]
) -> Contrast:
    """The anchor on a tree's golden answer, as ``config.anchor_kind`` says, for the contrasts
    ``beside`` it."""
    whole = closed(policy, task, tree.golden_ids, tree.golden)
    if config.anchor_kind == "kl":
        return kl_anchor(tree.task, tree.prompt_ids + whole, config.anchor, beside)
    return Contrast(tree.task, -1, tree.prompt_ids, whole, (), config.anchor)


def kl_anchor(
    name: str, ids: tuple[int, ...], weight: float, beside: Sequence[Contrast] = ()
) -> Contrast:
    """Keep the player close to the opponent all along ``ids``, but for the states in which a
    contrast ``beside`` it asks for a change: those that its continuations share with ``ids``."""
    free = [1] * len(ids)
    for contrast in beside:
        start = len(contrast.prefix)
        if ids[:start] != contrast.prefix:
            continue
        for side in (contrast.chosen, contrast.rejected):
            for at, token in enumerate(side[: len(ids) - start], start):
                free[at] = 0  # of the state that this token is predicted from
                if ids[at] != token:
                    break
    return Contrast(name, -1, ids[:1], ids[1:], (), weight, kl=True, chosen_mask=tuple(free[1:]))


def anchors_of_text(
    policy: Policy, texts: Mapping[str, str], weight: float, kind: Anchor
) -> list[Contrast]:
    """Anchors on ordinary text (code that has nothing to do with security), one a name.

    Its likelihood, or the KL from the opponent, over every token but the first. What is longer than
    the model's context is cut there; a text of fewer than two tokens gives none.
    """
    out = []
    for name, text in texts.items():
        coded = policy.tokenizer(text, add_special_tokens=policy.style == "complete")
        ids = tuple(coded["input_ids"])[: policy.max_length]
        if len(ids) < 2:
            continue
        if kind == "kl":
            out.append(kl_anchor(f"ordinary/{name}", ids, weight))
        else:
            out.append(Contrast(f"ordinary/{name}", -1, ids[:1], ids[1:], (), weight))
    return out


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
            out.append(Contrast(task.id, node.id, tree.prefix(node), chosen, rejected, 1.0))
    return out


def sft(
    policy: Policy, task: Task, tree: Tree, config: ContrastConfig, counts: Counter[str]
) -> list[Contrast]:
    """Supervised fine-tuning on the golden answer."""
    if not tree.golden_ids:
        return []
    whole = closed(policy, task, tree.golden_ids, tree.golden)
    return [Contrast(task.id, -1, tree.prompt_ids, whole, (), 1.0)]


def dpo(
    policy: Policy, task: Task, tree: Tree, config: ContrastConfig, counts: Counter[str]
) -> list[Contrast]:
    """The golden answer against the vulnerable one, whole."""
    wrong = _vulnerable(policy, task, tree, counts)
    if wrong is None:
        return []
    whole = closed(policy, task, tree.golden_ids, tree.golden)
    against = closed(policy, task, wrong.ids, wrong.text)
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


def contrast_to_json(contrast: Contrast) -> dict[str, Any]:
    """Without what is not said: most contrasts are no anchors and have no masks."""
    data = asdict(contrast)
    return {key: data[key] for key in data if key not in _RARE or data[key]}


def contrast_from_json(data: dict[str, Any]) -> Contrast:
    """Read what :func:`contrast_to_json` wrote, now or before there were anchors and masks."""
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Contrast(**given)


_RARE = ("kl", "chosen_mask", "rejected_mask", "opponent")
