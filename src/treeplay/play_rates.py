"""How often a player goes wrong at each training task, by all that was judged of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from treeplay.golden import own_from_json
from treeplay.run import read_jsonl
from treeplay.selfplay import Rate, rates

if TYPE_CHECKING:
    from treeplay.play import Game


def measured(game: Game, number: int) -> Mapping[str, Rate]:
    """Of each task of round ``number``, the vulnerable rate of the player before it.

    By the branches of the task's tree. Where golden paths are the opponent's own, by all its whole
    answers instead: a trie keeps those alone that part where a vulnerable one does. Where a tree
    was probed and got no node, by its rollouts from the answer's beginning.
    """
    trees = game.grow(number)
    found = rates(trees, game.player(number - 1))
    for tree in trees:
        if tree.task not in found and tree.probes:
            first = tree.probes[0]
            good = first.judged - first.vulnerable
            found[tree.task] = Rate(first.judged, good, first.vulnerable)
    if game.config.golden.source != "reference":
        for row in read_jsonl(game.run.path(game.player(number), "golden.jsonl")):
            samples = own_from_json(row).samples
            labels = Counter(b.verdict.label for b in samples.branches if b.verdict)
            found[samples.task] = Rate(labels.total(), labels["secure"], labels["vulnerable"])
    return found
