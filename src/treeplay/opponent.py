"""The opponent's log-probs of every contrast: scored in a packed pass, once a round.

While it sampled, the opponent already gave each token of its branches a log-prob. In float32 those
agree with a second pass to about 1e-4 nats and may be used again (``train.reference=reuse``); in
bfloat16 the two differ by tenths of nats, as the arithmetic of a batch differs from that of a tree,
and the margin would start off wrong by as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from treeplay.contrast import Contrast
from treeplay.errors import RunError
from treeplay.groups import Budget, Group, check_contrasts, each_bin, make_groups
from treeplay.policy.model import Policy
from treeplay.train import TrainConfig, contrast_logps, packed_where_right
from treeplay.tree import Branch, Tree

DRIFT = 1e-3  # nats a token by which log-probs may differ from a second pass to be used again

Logps = tuple[float, ...]


def with_sampled(contrasts: Sequence[Contrast], trees: Sequence[Tree]) -> list[Contrast]:
    """Contrasts with the log-probs that the opponent had while it sampled them, where it did: a
    continuation is then what a branch of the contrast's node, by the same player, begins with."""
    branches: dict[tuple[str, int], list[Branch]] = {}
    for tree in trees:
        for branch in tree.branches:
            branches.setdefault((tree.task, branch.node), []).append(branch)

    def known(contrast: Contrast, tail: tuple[int, ...]) -> Logps:
        for branch in branches.get((contrast.task, contrast.node), ()):
            if branch.opponent != contrast.opponent:
                continue
            if tail and branch.ids[: len(tail)] == tail and len(branch.logps) >= len(tail):
                return branch.logps[: len(tail)]
        return ()

    return [
        replace(c, chosen_opp=known(c, c.chosen), rejected_opp=known(c, c.rejected))
        for c in contrasts
    ]


def score_opponent(
    policy: Policy,
    contrasts: Sequence[Contrast],
    config: TrainConfig,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Contrast]:
    """Contrasts with the raw log-probs of ``policy`` (the opponent) for every token.

    With ``config.reference`` ``reuse``, log-probs that contrasts bring along
    (:func:`with_sampled`) are kept; the first bin is scored all the same, and where it differs by
    more than :data:`DRIFT` (or the model is not float32) so is everything, and ``say`` is told.
    ``progress(contrasts, tokens)`` counts up. Raises :class:`RunError` for contrasts that the
    model cannot read, for memory too small for a single one, and for log-probs that are not
    numbers.
    """
    check_contrasts(policy, contrasts)
    config = packed_where_right(policy.model, config)
    budget = Budget(config.max_tokens)
    found: dict[int, tuple[Logps, Logps]] = {}

    def work(group: Group) -> list[tuple[Logps, Logps]]:
        with torch.no_grad():
            logps = contrast_logps(policy.model, group.contrasts, config.packed)
            flat = torch.cat([side for pair in logps for side in pair]).tolist()
        values = iter(flat)
        out = []
        for contrast, pair in zip(group.contrasts, logps, strict=True):
            chosen, rejected = (tuple(round(next(values), 6) for _ in side) for side in pair)
            if not all(math.isfinite(x) for x in chosen + rejected):
                raise RunError(
                    f"the opponent's log-probs of task {contrast.task!r} are not numbers; use "
                    "model.dtype=float32, or another model"
                )
            out.append((chosen, rejected))
        return out

    def score(some: Sequence[Contrast]) -> None:
        """Score the continuations of ``some`` into ``found``."""
        for group, values in each_bin(
            make_groups(some, config.packed), budget, config.packed, work
        ):
            for contrast, pair in zip(group.contrasts, values, strict=True):
                found[id(contrast)] = pair
            if progress:
                progress(len(group.contrasts), group.tokens)

    reuse = config.reference == "reuse" and any(c.chosen_opp or c.rejected_opp for c in contrasts)
    if reuse and policy.model.dtype != torch.float32:
        reuse = False
        if say:
            say("train.reference=reuse needs model.dtype=float32; the opponent is scored instead")
    if reuse:
        first = _first(contrasts)
        score(first)
        drift = max(_drift(c, found[id(c)]) for c in first)
        if drift > DRIFT:
            reuse = False
            if say:
                say(
                    f"the log-probs kept from sampling are off by up to {drift:.1g} nats a token; "
                    "the opponent is scored instead"
                )
    rest: list[Contrast] = []
    asked: list[Contrast] = []  # what is scored for each contrast: the sides that are missing
    for contrast in contrasts:
        one = contrast
        if reuse and id(contrast) not in found:
            one = replace(
                contrast,
                chosen=() if contrast.chosen_opp else contrast.chosen,
                rejected=() if contrast.rejected_opp else contrast.rejected,
            )
        asked.append(one)
        if id(one) in found:
            continue
        if (one.chosen or one.rejected) and not one.kl:  # a KL is counted while training
            rest.append(one)
        else:
            found[id(one)] = ((), ())
            if progress:
                progress(1, 0)
    score(rest)
    return [
        replace(
            contrast,
            chosen_opp=found[id(one)][0] or contrast.chosen_opp,
            rejected_opp=found[id(one)][1] or contrast.rejected_opp,
        )
        for contrast, one in zip(contrasts, asked, strict=True)
    ]


def _first(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The contrasts of the first tree that has log-probs from sampling."""
    for group in make_groups(contrasts):
        if any(c.chosen_opp or c.rejected_opp for c in group.contrasts):
            return [contrast for contrast in group.contrasts if not contrast.kl]
    return []


def _drift(contrast: Contrast, scored: tuple[Logps, Logps]) -> float:
    """How far a token's log-prob from sampling is from the scored one, at most."""
    pairs = ((contrast.chosen_opp, scored[0]), (contrast.rejected_opp, scored[1]))
    gaps = [abs(a - b) for old, new in pairs if old for a, b in zip(old, new, strict=True)]
    return max(gaps, default=0.0)
