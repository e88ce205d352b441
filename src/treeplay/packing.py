"""Pack token sequences that share prefixes into one sequence: a trie, laid out depth first.

Every distinct (prefix, token) pair stands once, so a transformer computes it once. A token sees
its ancestors only (:func:`ancestor_mask`; :func:`subtree_ends` tells the same in less room) and its
position is its depth, hence its hidden state is the one it would have in the plain sequence. A
token is predicted by its *parent*, which is not in general the token to its left: never shift a
packed sequence.

Axes: L packed tokens, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Packed:
    """``ids``, ``positions``, ``parents``: (L,); a root's parent is -1.

    ``slots[s][i]`` is the packed index of token ``i`` of sequence ``s``.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    parents: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]


def pack(sequences: Sequence[Sequence[int]]) -> Packed:
    """Merge sequences into one trie, in depth-first order.

    Of several children the one with the largest subtree comes first, the others in order of first
    use: long paths then lie in one piece, and a token has few pieces of ancestors (at most log2 L,
    as in the heavy path decomposition of Sleator and Tarjan 1983).
    """
    tokens: list[int] = []
    parents: list[int] = []
    children: list[dict[int, int]] = [{}]  # children[0] are the roots; children[k + 1] node k's
    walks: list[list[int]] = []
    for sequence in sequences:
        at, walk = -1, []
        for token in sequence:
            nxt = children[at + 1].get(token)
            if nxt is None:
                nxt = len(tokens)
                tokens.append(token)
                parents.append(at)
                children[at + 1][token] = nxt
                children.append({})
            walk.append(nxt)
            at = nxt
        walks.append(walk)

    below = [1] * len(tokens)  # tokens of each subtree; a parent is made before its children
    for node in range(len(tokens) - 1, -1, -1):
        if parents[node] >= 0:
            below[parents[node]] += below[node]
    order: list[int] = []
    stack = list(reversed(children[0].values()))
    while stack:
        node = stack.pop()
        order.append(node)
        kids = list(children[node + 1].values())
        if len(kids) > 1:
            kids.sort(key=lambda kid: -below[kid])
        stack.extend(reversed(kids))
    place = {node: slot for slot, node in enumerate(order)}
    place[-1] = -1

    new_parents = [place[parents[node]] for node in order]
    positions: list[int] = []
    for parent in new_parents:
        positions.append(0 if parent < 0 else positions[parent] + 1)
    return Packed(
        tuple(tokens[node] for node in order),
        tuple(positions),
        tuple(new_parents),
        tuple(tuple(place[node] for node in walk) for walk in walks),
    )


def subtree_ends(parents: Sequence[int]) -> list[int]:
    """For each slot of a depth-first layout the end of its subtree: ``k`` is ``q`` or one of its
    ancestors exactly where ``k <= q < ends[k]``."""
    ends = list(range(1, len(parents) + 1))
    for slot in range(len(parents) - 1, -1, -1):
        if parents[slot] >= 0:
            ends[parents[slot]] = max(ends[parents[slot]], ends[slot])
    return ends


def ancestor_mask(parents: Sequence[int]) -> torch.Tensor:
    """Boolean (L, L): ``mask[q, k]`` is True where ``k`` is ``q`` or an ancestor of ``q``."""
    size = len(parents)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for slot, parent in enumerate(parents):
        if parent >= 0:
            mask[slot] = mask[parent]
        mask[slot, slot] = True
    return mask
