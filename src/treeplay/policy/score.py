"""Log-probabilities of tokens under a model, packed or plain.

Raw: temperature 1, untruncated, float32 log-softmax. Axes: L packed tokens, R rows (tokens that
predict a wanted one), U distinct wanted tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from treeplay.packing import Packed, pack
from treeplay.policy.attention import tree_mask
from treeplay.policy.head import Head, gather_logps, head_of, logps_of, without
from treeplay.policy.kl import gather_logps_and_kl, logits_to_both
from treeplay.policy.lora import fuse_lora
from treeplay.policy.matmul import quicken
from treeplay.policy.tree_blocks import FLEX_BLOCK, Tree

Span = tuple[int, int]
# Inside, the model is its own opponent.
Opponent = Callable[[], AbstractContextManager[Any]]
Attention = Literal["split", "flex", "dense"]
DEVICE_ATTENTION: dict[str, Attention] = {"cpu": "split", "cuda": "flex"}


def packed_logps(
    model: Any,
    sequences: Sequence[Sequence[int]],
    spans: Sequence[Span],
    *,
    attention: Attention | None = None,
) -> list[torch.Tensor]:
    """Log-probs of ``sequences[s][start:end]`` for each span, in one packed forward pass.

    Returns one float32 tensor of shape (end - start,) a sequence, with gradient if enabled.
    The output layer is applied only at the distinct tokens that predict a wanted one, and in tiles
    (:mod:`treeplay.policy.head`). ``attention``: ``split`` (CPU), ``flex`` (FlexAttention, GPU) or
    ``dense`` (one L x L mask, the oracle of the others); left out, the fastest of the device.
    Raises ``ValueError`` for a span that starts at 0 (nothing predicts the first token), and
    :class:`treeplay.errors.ModelError` for a model that does not compute packed trees.
    """
    return packed_scores(model, sequences, spans, None, attention=attention)[0]


def packed_scores(
    model: Any,
    sequences: Sequence[Sequence[int]],
    spans: Sequence[Span],
    opponent: Opponent | None,
    *,
    attention: Attention | None = None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probs as :func:`packed_logps`, and, of the same shapes, how far the player is from the
    opponent where each token is predicted: KL(opponent || player) in nats, with gradient.

    Inside ``opponent()`` the model is the opponent, whose hidden states take a forward pass of
    their own. Without one, log-probs are computed alone and the second list is empty.
    """
    _check(sequences, spans)
    packed = pack(sequences)
    wanted = [packed.slots[s][i] for s, (a, b) in enumerate(spans) for i in range(a, b)]
    unique = sorted(set(wanted), key=lambda slot: (packed.parents[slot], slot))
    rows = sorted({packed.parents[slot] for slot in unique})
    device = next(iter(model.parameters())).device
    if not rows:
        nothing = [torch.zeros(0, device=device) for _ in spans]
        return nothing, nothing if opponent else []
    row_of = {row: i for i, row in enumerate(rows)}
    row_U = torch.tensor([row_of[packed.parents[slot]] for slot in unique], device=device)
    token_U = torch.tensor([packed.ids[slot] for slot in unique], device=device)
    fuse_lora(model)
    quicken(model)
    head = head_of(model)
    theirs = None
    if opponent:
        with torch.no_grad(), opponent():
            theirs = _outputs(model, head, packed, rows, attention)
    mine = _outputs(model, head, packed, rows, attention)
    kl_R = None
    if head is None:
        if theirs is None:
            logp_U = logps_of(mine, row_U, token_U)
        else:
            logp_U, kl_R = logits_to_both(mine, theirs, row_U, token_U)
    elif theirs is None:
        logp_U = gather_logps(head, mine, row_U, token_U)
    else:
        logp_U, kl_R = gather_logps_and_kl(head, mine, theirs, row_U, token_U)
    place = {slot: i for i, slot in enumerate(unique)}
    index = torch.tensor([place[slot] for slot in wanted], dtype=torch.long, device=device)
    lengths = [end - start for start, end in spans]
    kls = [] if kl_R is None else list(torch.split(kl_R[row_U][index], lengths))
    return list(torch.split(logp_U[index], lengths)), kls


def _outputs(
    model: Any, head: Head | None, packed: Packed, rows: list[int], attention: Attention | None
) -> torch.Tensor:
    """Hidden states (R, D) in front of the output layer; logits (R, V) where that is not known."""
    if head is None:
        logits: torch.Tensor = _run(model, packed, rows, attention).logits[0]
        return logits
    with without(head.layer) as caught:
        _run(model, packed, rows, attention)
    hidden_RD = caught[-1].reshape(-1, caught[-1].shape[-1])
    if len(hidden_RD) != len(rows):  # a model that always gives every row
        hidden_RD = hidden_RD[torch.tensor(rows, device=hidden_RD.device)]
    return hidden_RD


def _run(model: Any, packed: Packed, rows: list[int], attention: Attention | None) -> Any:
    """One forward pass over ``packed``, logits at ``rows`` only."""
    device = next(iter(model.parameters())).device
    mode = attention or DEVICE_ATTENTION.get(device.type, "dense")
    # FlexAttention computes whole blocks; each slot of padding is a tree of its own.
    padding = -len(packed.ids) % FLEX_BLOCK if mode == "flex" else 0
    ids_L = torch.tensor(packed.ids + (0,) * padding, device=device)
    position_L = torch.tensor(packed.positions + (0,) * padding, device=device)
    tree = Tree(packed.parents + (-1,) * padding, mode)
    return model(
        input_ids=ids_L[None],
        position_ids=position_L[None],
        attention_mask=tree_mask(model, tree, device),
        logits_to_keep=torch.tensor(rows, device=device),
        use_cache=False,
    )


def plain_logps(
    model: Any, sequences: Sequence[Sequence[int]], spans: Sequence[Span]
) -> list[torch.Tensor]:
    """The same as :func:`packed_logps`, one causal forward pass a sequence: the oracle."""
    return plain_scores(model, sequences, spans, None)[0]


def plain_scores(
    model: Any,
    sequences: Sequence[Sequence[int]],
    spans: Sequence[Span],
    opponent: Opponent | None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The same as :func:`packed_scores`, one causal forward pass a sequence: the oracle."""
    _check(sequences, spans)
    device = next(iter(model.parameters())).device
    logps, kls = [], []
    for sequence, (start, end) in zip(sequences, spans, strict=True):
        ids = torch.tensor(list(sequence[:end]), device=device)
        rows = torch.arange(start - 1, end - 1, device=device)
        index = torch.arange(end - start, device=device)
        theirs = None
        if opponent:
            with torch.no_grad(), opponent():
                theirs = model(input_ids=ids[None], logits_to_keep=rows, use_cache=False).logits[0]
        logits = model(input_ids=ids[None], logits_to_keep=rows, use_cache=False).logits[0]
        if theirs is None:
            logps.append(logps_of(logits, index, ids[start:end]))
        else:
            logp, kl = logits_to_both(logits, theirs, index, ids[start:end])
            logps.append(logp)
            kls.append(kl)
    return logps, kls


def _check(sequences: Sequence[Sequence[int]], spans: Sequence[Span]) -> None:
    for sequence, (start, end) in zip(sequences, spans, strict=True):
        if not 1 <= start <= end <= len(sequence):
            raise ValueError(f"span {start}:{end} does not fit a sequence of {len(sequence)}")
