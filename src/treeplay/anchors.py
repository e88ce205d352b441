"""Anchors: what keeps a player able beside its contrasts. The likelihood of an answer, or the KL
from the opponent along it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from treeplay.closing import closed
from treeplay.contrast import Anchor, Contrast, ContrastConfig
from treeplay.policy.model import Policy
from treeplay.tasks.task import Task
from treeplay.tree import Tree


def golden_anchor(
    policy: Policy, task: Task, tree: Tree, config: ContrastConfig, beside: Sequence[Contrast]
) -> Contrast:
    """The anchor on a tree's golden answer, as ``config.anchor_kind`` says, for the contrasts
    ``beside`` it."""
    whole = closed(policy, task, tree.golden_ids)
    if config.anchor_kind == "kl":
        return kl_anchor(tree.task, tree.prompt_ids + whole, config.anchor, beside)
    return Contrast(tree.task, -1, tree.prompt_ids, whole, (), config.anchor)


def freed(contrasts: Sequence[Contrast], beside: Sequence[Contrast]) -> list[Contrast]:
    """``contrasts`` with their KL anchors on golden answers open also where ``beside`` (pairs that
    were added, of earlier rounds) asks for a change."""
    by_task: dict[str, list[Contrast]] = {}
    for contrast in beside:
        by_task.setdefault(contrast.task, []).append(contrast)
    out = []
    for anchor in contrasts:
        if anchor.kl and (added := by_task.get(anchor.task)):
            free = kl_anchor(anchor.task, anchor.prefix + anchor.chosen, 1.0, added).chosen_mask
            both = zip(anchor.chosen_mask, free, strict=True)
            anchor = replace(anchor, chosen_mask=tuple(one * other for one, other in both))
        out.append(anchor)
    return out


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
