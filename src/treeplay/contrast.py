"""A training example, as it is made, kept on disk and learnt from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from treeplay.extents import Extent

Weights = Literal["uniform", "rate", "value"]
Anchor = Literal["likelihood", "kl"]


@dataclass(frozen=True)
class ContrastConfig:
    """``extent``: up to the end of the statement that decides, or of the answer. ``weights``:
    every contrast alike, by its node's measured vulnerable rate, or by how much the chosen side
    lowers that (:mod:`treeplay.values`; ``value_prior``: rollouts' worth of doubt). ``siblings``:
    also prefer the opponent's own secure branches, not the golden path alone. ``given``: also
    reject the vulnerable answer that a task comes with, at the nodes that it passes, whether or not
    the opponent makes that mistake. ``broken``: weight,
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
    given: bool = False
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
    loss ``safecoder``; without one, all do. ``opponent`` is the player whose log-probs these are;
    ``sampled_by``, until it is chosen, those that sampled the rejected side.
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
    sampled_by: tuple[str, ...] = ()


def contrast_to_json(contrast: Contrast) -> dict[str, Any]:
    """Without what is not said: most contrasts are no anchors and have no masks."""
    data = asdict(contrast)
    return {key: data[key] for key in data if key not in _RARE or data[key]}


def contrast_from_json(data: dict[str, Any]) -> Contrast:
    """Read what :func:`contrast_to_json` wrote, now or before there were anchors and masks."""
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Contrast(**given)


_RARE = ("kl", "chosen_mask", "rejected_mask", "opponent", "sampled_by")
