"""Which contrasts share a forward pass: trees, parts of trees, and bins of several of them.

    contrasts -> trees (one a task) -> parts (within the token budget) -> bins (several parts)

A tree larger than the budget is split at its nodes; each part repeats the prefix that it shares
with the others, so nothing is approximated. Small trees share a bin, first fit decreasing (Johnson
1973, at most 11/9 of the fewest bins). The gradient of a step is a weighted sum over its contrasts
and does not depend on any of this, up to rounding.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from treeplay.contrast import Contrast
from treeplay.errors import RunError
from treeplay.policy.model import Policy

Result = TypeVar("Result")


@dataclass(frozen=True)
class Group:
    """Contrasts that are computed together: a tree, a part of one, or a bin.

    ``size``: the tokens a forward pass over them computes (distinct ones where packed).
    """

    contrasts: tuple[Contrast, ...]
    size: int

    @property
    def tokens(self) -> int:
        """Tokens counted flat: the prefix twice and both continuations of every contrast."""
        return sum(_flat(contrast) for contrast in self.contrasts)

    @property
    def learnt(self) -> int:
        """Tokens of the sequences that a gradient comes from, counted flat: what methods are
        compared at (``train.budget``). A side that a contrast does not have costs nothing."""
        return sum(
            len(contrast.prefix) + len(side)
            for contrast in self.contrasts
            for side in (contrast.chosen, contrast.rejected)
            if side
        )


@dataclass
class Budget:
    """Tokens that one bin may have. It shrinks where the machine's memory turns out smaller."""

    tokens: int


class _Trie:
    """Counts the distinct tokens (prefix, token) of contrasts. Each edge is (node, token)."""

    def __init__(self) -> None:
        self.edges: dict[tuple[int, int], int] = {}

    def add(self, contrasts: Sequence[Contrast]) -> int:
        """Put contrasts in; returns how many distinct tokens there are now."""
        for contrast in contrasts:
            trunk = self._walk(0, contrast.prefix)
            self._walk(trunk, contrast.chosen)
            self._walk(trunk, contrast.rejected)
        return len(self.edges)

    def _walk(self, at: int, ids: Sequence[int]) -> int:
        for token in ids:
            at = self.edges.setdefault((at, token), len(self.edges) + 1)
        return at


def size_of(contrasts: Sequence[Contrast], packed: bool) -> int:
    """Tokens that a forward pass over ``contrasts`` computes."""
    if not packed:
        return sum(_flat(contrast) for contrast in contrasts)
    return _Trie().add(contrasts)


def _flat(contrast: Contrast) -> int:
    return 2 * len(contrast.prefix) + len(contrast.chosen) + len(contrast.rejected)


def make_groups(contrasts: Sequence[Contrast], packed: bool = True) -> list[Group]:
    """One group a task: its tree, in order of first appearance."""
    by_task: dict[str, list[Contrast]] = {}
    for contrast in contrasts:
        by_task.setdefault(contrast.task, []).append(contrast)
    return [Group(tuple(members), size_of(members, packed)) for members in by_task.values()]


def arrange(groups: Sequence[Group], budget: int, packed: bool = True) -> list[Group]:
    """Bins that hold every contrast of ``groups`` once, none above ``budget`` tokens.

    A single contrast that is larger than the budget has a bin of its own: its loss needs both of
    its sides at once.
    """
    parts = [part for group in groups for part in split(group, budget, packed)]
    bins: list[list[Group]] = []
    used: list[int] = []
    for part in sorted(parts, key=lambda part: -part.size):
        place = next((i for i, size in enumerate(used) if size + part.size <= budget), None)
        if place is None:
            place = len(bins)
            bins.append([])
            used.append(0)
        bins[place].append(part)
        used[place] += part.size
    return [
        Group(tuple(c for part in members for c in part.contrasts), size)
        for members, size in zip(bins, used, strict=True)
    ]


def split(group: Group, budget: int, packed: bool = True) -> list[Group]:
    """``group`` in parts within ``budget``: cut between nodes, and within a node only where its
    own contrasts are too many. Nodes go in depth-first order, so that neighbours share most."""
    if group.size <= budget:
        return [group]
    by_node: dict[tuple[str, int], list[Contrast]] = {}
    for contrast in group.contrasts:
        by_node.setdefault((contrast.task, contrast.node), []).append(contrast)
    pieces: list[list[Contrast]] = []
    # Of token tuples, the lexical order is the depth-first one.
    for members in sorted(by_node.values(), key=lambda members: members[0].prefix):
        fits = size_of(members, packed) <= budget
        pieces += [members] if fits else [[contrast] for contrast in members]
    parts: list[list[Contrast]] = []
    sizes: list[int] = []
    trie = _Trie()
    for piece in pieces:
        size = trie.add(piece) if packed else size_of(piece, False) + sum(sizes[-1:])
        if not parts or size > budget:
            trie = _Trie()
            size = trie.add(piece) if packed else size_of(piece, False)
            parts.append([])
            sizes.append(size)
        parts[-1] += piece
        sizes[-1] = size
    return [Group(tuple(part), size) for part, size in zip(parts, sizes, strict=True)]


def each_bin(
    groups: Sequence[Group],
    budget: Budget,
    packed: bool,
    work: Callable[[Group], Result],
) -> Iterator[tuple[Group, Result]]:
    """``work`` on every bin of ``groups``; a bin that does not fit into memory is halved.

    ``work`` must leave nothing behind where it fails. Raises :class:`RunError` where a single
    contrast does not fit.
    """
    queue = deque(arrange(groups, budget.tokens, packed))
    while queue:
        group = queue.popleft()
        done = []
        try:
            done.append(work(group))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        # Behind the handler: the error's frames, which hold tensors, are gone by now.
        if done:
            yield group, done[0]
            continue
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(group.contrasts) == 1:
            (one,) = group.contrasts
            raise RunError(
                f"out of memory: task {one.task!r} has a contrast of {group.size} tokens that does "
                "not fit even alone; set train.checkpointing=true, train fewer layers "
                "(train.lora.layers), shorten the task, or use a smaller model"
            )
        budget.tokens = min(budget.tokens, size_of(group.contrasts, packed) // 2)
        queue.extendleft(reversed(arrange([group], budget.tokens, packed)))


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. On a CPU, PyTorch says so in a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    told = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(words in text for words in told)


def check_contrasts(policy: Policy, contrasts: Sequence[Contrast]) -> None:
    """Raises :class:`RunError` for a contrast that the model cannot read: one longer than its
    context, one without a token to predict the first from, one of another tokenizer."""
    known = int(policy.model.get_input_embeddings().weight.shape[0])
    for contrast in contrasts:
        where = f"task {contrast.task!r}, node {contrast.node}"
        length = len(contrast.prefix) + max(len(contrast.chosen), len(contrast.rejected))
        if length > policy.max_length:
            raise RunError(
                f"{where}: a contrast has {length} tokens, but the model reads "
                f"{policy.max_length}; shorten the task, lower grow.max_tokens, or set "
                "contrasts.extent=local"
            )
        if not contrast.prefix:
            raise RunError(
                f"{where}: a node at position 0 has no token before it to predict from; begin the "
                "task's prompt with some text"
            )
        top = max(max(ids, default=0) for ids in (contrast.prefix, contrast.chosen))
        top = max(top, max(contrast.rejected, default=0))
        if top >= known:
            raise RunError(
                f"{where}: a contrast holds the token id {top}, but the model knows ids below "
                f"{known}: it was made with another model's tokenizer; draw the contrasts again "
                "with this model"
            )
