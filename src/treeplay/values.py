"""What a continuation is worth: how much less often the opponent ends vulnerable behind it.

    w = max(0, V(s) - V(s + a)) * n / (n + prior),    1/n = 1/n_s + 1/n_a,    cut to at most 1

``s`` is a node, ``a`` the chosen continuation. V(s) is the share of the node's n_s judged rollouts
(secure or vulnerable; of a trie's node all samples that passed it) that end vulnerable. V(s + a) is
the same share of the n_a rollouts known to pass through ``a``: those of the node that begin with
its tokens and, where ``a`` is golden, those from the state right behind it, if that is a node or
was probed; in a trie, the samples that kept to ``a`` (:func:`through`). For a golden ``a`` without
any, the golden path itself stands in as one secure rollout; a secure branch is one rollout of its
own. Where
nothing is left to chance behind ``a`` (a grafted branch, or an extent up to the answer's end),
V(s + a) is 0 and 1/n_a is 0.

The factor shrinks towards "the choice changes nothing": it is the posterior mean of a difference
under a normal prior around 0 that is worth ``prior`` rollouts (James and Stein's shrinkage with a
known ratio of variances). With few rollouts a difference seen is mostly luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from treeplay.tree import Branch, Node, Tree

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """Of ``judged`` rollouts, ``vulnerable`` ended so."""

    judged: int = 0
    vulnerable: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(self.judged + other.judged, self.vulnerable + other.vulnerable)


def share_of(branches: Sequence[Branch]) -> Share:
    labels = [branch.verdict.label for branch in branches if branch.verdict]
    bad = labels.count("vulnerable")
    return Share(bad + labels.count("secure"), bad)


def share_at(tree: Tree, node: Node) -> Share:
    """Of the rollouts from a node (where a branch went wrong late, that branch is one of them), or
    of the samples that passed a trie's."""
    if node.passed is not None:
        return Share(*node.passed)
    found = share_of([branch for branch in tree.branches if branch.node == node.id])
    return found + Share(1, 1) if node.source == "late" else found


def drop(state: Share, after: Share | None, prior: float) -> float:
    """The weight above, in 0..1; ``after`` is None where nothing behind the choice is left to
    chance. 0 where nothing was judged."""
    if not state.judged or (after is not None and not after.judged):
        return 0.0
    value = state.vulnerable / state.judged
    behind = after.vulnerable / after.judged if after else 0.0
    count = 1 / (1 / state.judged + (1 / after.judged if after else 0.0))
    return min(1.0, max(0.0, value - behind) * count / (count + prior))


def value_of_choice(
    tree: Tree, node: Node, chosen: Ids, golden: Ids, *, full: bool, prior: float
) -> float:
    """The weight of preferring ``chosen`` at ``node``. ``golden``: the golden continuation of the
    same extent, () where the node is on a branch; ``full``: the extent goes to the answer's end."""
    here = [branch for branch in tree.branches if branch.node == node.id]
    grafted = node.branch is None and any(branch.completion == "graft" for branch in here)
    if full or grafted:
        return drop(share_at(tree, node), None, prior)
    position = node.position + len(chosen)
    if node.passed is not None and tree.path(node.branch)[node.position : position] == chosen:
        after = through(tree, node, position)
    else:
        after = share_of([branch for branch in here if branch.ids[: len(chosen)] == chosen])
        if chosen == golden:
            after += _behind(tree, node, position)
    return drop(share_at(tree, node), after if after.judged else Share(1, 0), prior)


def through(tree: Tree, node: Node, position: int) -> Share:
    """Of the samples that passed a trie's ``node``, those that keep to its path up to token
    ``position``. Secure ones that leave where no vulnerable one does are not told from these."""
    before = [
        other
        for other in tree.nodes
        if other.branch == node.branch and other.stayed and other.position < position
    ]
    last = max(before, key=lambda other: other.position)
    return Share(*(last.stayed or ()))


def _behind(tree: Tree, node: Node, position: int) -> Share:
    """Rollouts from the first state of the golden path at or behind token ``position`` with only
    white space in between."""
    first = position - len(tree.prompt_ids)
    if first >= len(tree.golden_ids):
        return Share()
    begin = tree.golden_starts[first]
    found: dict[int, Share] = {}
    for probe in tree.probes:
        if probe.position >= position and not tree.golden[begin : probe.offset].strip():
            found[probe.position] = Share(probe.judged, probe.vulnerable)
    for other in tree.nodes:
        on_path = other.branch is None and other.position >= position
        if on_path and not tree.golden[begin : other.offset].strip():
            # A node's branches hold the rollouts that it was probed with.
            found[other.position] = share_at(tree, other)
    return found[min(found)] if found else Share()
