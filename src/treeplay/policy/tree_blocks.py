"""Cut the attention of a packed tree into few small rectangles.

A packed tree is laid out depth first, so the ancestors that a contiguous run of slots
``start..stop`` has outside itself are all ancestors of ``start``. One block is therefore: queries
``start..stop``, keys the ancestors of ``start`` and the run itself, and a mask for those keys only
that some query must not see. Any cutting of the slots into runs is exact; a small dynamic programme
takes the cheapest, which makes the cost proportional to tokens times depth instead of L x L.

Axes: L packed tokens, m queries of a block, n keys of a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from treeplay.packing import ancestor_mask, subtree_ends

# Costs in units of one query-key pair of all heads of a small model (measured: a pair takes about
# 0.1 microseconds forward and backward, a block's two dozen calls 0.15 ms, a key's copies 0.5).
BLOCK_COST = 1500
KEY_COST = 6
# Slots between the places where a long unbranched run may be cut.
STEP = 32
# Query-key pairs of one block at most, so that its scores (pairs x heads) stay small.
MAX_PAIRS = 1 << 20


@dataclass(frozen=True)
class Block:
    """Queries ``start..stop`` against the slots in ``keys`` (ascending ranges, the queries last).

    The first ``common`` keys are seen by every query; ``hidden`` (m, n - common) is added to the
    scores of the others: 0 where a query sees the key, minus infinity where it does not.
    """

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    common: int
    hidden: torch.Tensor

    @property
    def pairs(self) -> int:
        """Query-key pairs, hidden ones included."""
        return (self.stop - self.start) * sum(stop - start for start, stop in self.keys)


@dataclass(frozen=True)
class Tree:
    """What attention needs to know of a packed tree; the expensive parts are made when asked for.

    ``mode``: ``split`` (blocks), ``flex`` (FlexAttention) or ``dense`` (one L x L mask).
    """

    parents: tuple[int, ...]
    mode: str
    made: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def ends(self) -> list[int]:
        ends: list[int] = self._once("ends", lambda: subtree_ends(self.parents))
        return ends

    @property
    def blocks(self) -> list[Block]:
        blocks: list[Block] = self._once("blocks", lambda: cut(self.parents, self.ends))
        return blocks

    def dense(self, device: torch.device) -> torch.Tensor:
        """The ancestor mask (1, 1, L, L), boolean."""
        mask: torch.Tensor = self._once(
            f"dense {device}", lambda: ancestor_mask(self.parents)[None, None].to(device)
        )
        return mask

    def flex(self, device: torch.device) -> Any:
        """FlexAttention's ``BlockMask``; L must be a multiple of 128."""
        return self._once(f"flex {device}", lambda: flex_mask(self.ends, device))

    def _once(self, name: str, make: Any) -> Any:
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]


def cut(parents: Sequence[int], ends: Sequence[int]) -> list[Block]:
    """The cheapest blocks that together hold every slot once, in order."""
    depth: list[int] = []  # ancestors of each slot, itself not counted
    head: list[int] = []  # first slot of the unbroken run parent, child, ... that a slot lies in
    places: list[int] = []  # where a block may start
    for slot, parent in enumerate(parents):
        depth.append(depth[parent] + 1 if parent >= 0 else 0)
        joined = parent >= 0 and parent == slot - 1
        head.append(head[parent] if joined else slot)
        if (slot - head[slot]) % STEP == 0:
            places.append(slot)
    places.append(len(parents))
    best = [0.0] + [float("inf")] * (len(places) - 1)
    came = [0] * len(places)
    for j in range(1, len(places)):
        for i in range(j - 1, -1, -1):
            size = places[j] - places[i]
            keys = depth[places[i]] + size
            if i < j - 1 and (size * size > best[j] or size * keys > MAX_PAIRS):
                break
            cost = best[i] + BLOCK_COST + KEY_COST * keys + size * keys
            if cost < best[j]:
                best[j], came[j] = cost, i
    edges = [len(places) - 1]
    while edges[-1]:
        edges.append(came[edges[-1]])
    slots = [places[edge] for edge in reversed(edges)]
    end_L = torch.tensor(ends)
    return [_block(parents, head, end_L, start, stop) for start, stop in itertools.pairwise(slots)]


def _block(
    parents: Sequence[int], head: Sequence[int], end_L: torch.Tensor, start: int, stop: int
) -> Block:
    ranges = [(start, stop)]
    at = parents[start]
    while at >= 0:
        if at + 1 == ranges[0][0]:
            ranges[0] = (head[at], ranges[0][1])
        else:
            ranges.insert(0, (head[at], at + 1))
        at = parents[head[at]]
    key_N = torch.cat([torch.arange(a, b) for a, b in ranges])
    outside = key_N[: len(key_N) - (stop - start)]
    # Ancestors' subtrees are nested, so the keys that all queries see come first.
    common = int((end_L[outside] >= stop).sum())
    some = key_N[common:]
    query = torch.arange(start, stop)[:, None]
    hidden = torch.zeros(stop - start, len(some))
    hidden.masked_fill_((some > query) | (query >= end_L[some]), -torch.inf)
    return Block(start, stop, tuple(ranges), common, hidden)


FLEX_BLOCK = 128


def flex_mask(ends: Sequence[int], device: torch.device) -> Any:
    """The ancestor mask as FlexAttention's ``BlockMask``, made without any L x L tensor.

    A key block left of a query block is seen by some query if and only if one of its subtrees
    reaches the first query, and by all queries if and only if every one reaches past the last.
    Raises ``ValueError`` where L is no multiple of 128.
    """
    from torch.nn.attention.flex_attention import BlockMask

    size = len(ends)
    if size % FLEX_BLOCK:
        raise ValueError(f"{size} slots are no multiple of {FLEX_BLOCK}")
    end_L = torch.tensor(ends, device=device)
    of_block = end_L.view(-1, FLEX_BLOCK)
    first = torch.arange(0, size, FLEX_BLOCK, device=device)
    left = first[None, :] < first[:, None]
    reaches = of_block.amax(1)[None, :] > first[:, None]
    covers = of_block.amin(1)[None, :] >= first[:, None] + FLEX_BLOCK
    full = left & covers
    partial = (left & reaches & ~covers) | torch.eye(len(first), dtype=torch.bool, device=device)

    def sees(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (q < end_L[k])

    return BlockMask.from_kv_blocks(
        *_ordered(partial), *_ordered(full), BLOCK_SIZE=FLEX_BLOCK, mask_mod=sees
    )


def _ordered(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many key blocks each query block takes (1, 1, Q), and which (1, 1, Q, K), those first."""
    count = chosen.sum(1, dtype=torch.int32)[None, None]
    index = chosen.int().argsort(dim=1, descending=True, stable=True).to(torch.int32)[None, None]
    return count.contiguous(), index.contiguous()
