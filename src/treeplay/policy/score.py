"""Log-probabilities of tokens under a model, packed or plain.

Raw: temperature 1, untruncated, float32 log-softmax. Axes: L packed tokens, W wanted tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from treeplay.packing import ancestor_mask, pack
from treeplay.policy.attention import model_mask

Span = tuple[int, int]


def packed_logps(
    model: Any, sequences: Sequence[Sequence[int]], spans: Sequence[Span]
) -> list[torch.Tensor]:
    """Log-probs of ``sequences[s][start:end]`` for each span, in one packed forward pass.

    Returns one float32 tensor of shape (end - start,) a sequence, with gradient if enabled.
    ``lm_head`` is applied only at the distinct tokens that predict a wanted one.
    Raises ``ValueError`` for a span that starts at 0 (nothing predicts the first token).
    """
    _check(sequences, spans)
    packed = pack(sequences)
    wanted = [packed.slots[s][i] for s, (a, b) in enumerate(spans) for i in range(a, b)]
    unique = sorted(set(wanted))
    rows = sorted({packed.parents[slot] for slot in unique})
    device = next(iter(model.parameters())).device
    if not rows:
        return [torch.zeros(0, device=device) for _ in spans]
    ids_L = torch.tensor(packed.ids, device=device)
    logits_RV = model(
        input_ids=ids_L[None],
        position_ids=torch.tensor(packed.positions, device=device)[None],
        attention_mask=model_mask(model, ancestor_mask(packed.parents).to(device)[None]),
        logits_to_keep=torch.tensor(rows, device=device),
        use_cache=False,
    ).logits[0]
    row_of = {row: i for i, row in enumerate(rows)}
    parent_U = torch.tensor([row_of[packed.parents[slot]] for slot in unique], device=device)
    token_U = ids_L[torch.tensor(unique, device=device)]
    logp_U = _gather(logits_RV, parent_U, token_U)
    place = {slot: i for i, slot in enumerate(unique)}
    out = []
    for s, (start, end) in enumerate(spans):
        index = torch.tensor(
            [place[packed.slots[s][i]] for i in range(start, end)], device=device, dtype=torch.long
        )
        out.append(logp_U[index])
    return out


def plain_logps(
    model: Any, sequences: Sequence[Sequence[int]], spans: Sequence[Span]
) -> list[torch.Tensor]:
    """The same as :func:`packed_logps`, one causal forward pass a sequence: the oracle."""
    _check(sequences, spans)
    device = next(iter(model.parameters())).device
    out = []
    for sequence, (start, end) in zip(sequences, spans, strict=True):
        ids = torch.tensor(list(sequence[:end]), device=device)
        rows = torch.arange(start - 1, end - 1, device=device)
        logits = model(input_ids=ids[None], logits_to_keep=rows, use_cache=False).logits[0]
        out.append(_gather(logits, torch.arange(end - start, device=device), ids[start:end]))
    return out


def _gather(logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log-softmax(logits)[rows, tokens] without keeping a second (rows x V) tensor."""
    logits = logits.float()
    return logits[rows, tokens] - torch.logsumexp(logits, dim=-1)[rows]


def _check(sequences: Sequence[Sequence[int]], spans: Sequence[Span]) -> None:
    for sequence, (start, end) in zip(sequences, spans, strict=True):
        if not 1 <= start <= end <= len(sequence):
            raise ValueError(f"span {start}:{end} does not fit a sequence of {len(sequence)}")
