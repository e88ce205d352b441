"""Ordinary code among the contrasts of a round."""

from __future__ import annotations

from treeplay.contrasts import Contrast, ContrastConfig, anchors_of_text
from treeplay.ordinary import some_ordinary_code
from treeplay.policy.model import Policy


def ordinary_anchors(
    policy: Policy, config: ContrastConfig, seed: int, languages: tuple[str, ...] = ()
) -> list[Contrast]:
    """``config.ordinary`` anchors, of other texts with another ``seed``; every epoch meets each."""
    texts = some_ordinary_code(config.ordinary, seed, languages)
    return anchors_of_text(policy, texts, config.ordinary_weight, config.ordinary_kind)
