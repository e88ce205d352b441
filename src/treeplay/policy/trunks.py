"""Prefill: the keys and values of what a batch's rows continue, each distinct token once.

Requests that name the same stem share its keys and values; each computes only the tail in which its
path leaves the stem. A stem is always computed alone, so a stem that was kept from before and one
that is computed anew (a run that was resumed) are the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from treeplay.policy.lanes import Layer, Trunk, fill
from treeplay.policy.prefix import prefix_layers

# Trunks of like length are computed together while padding stays below this share.
PADDING = 0.125
TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class Row:
    """Sample once behind ``path[:position]`` with its own ``seed``, and up to ``max_tokens`` tokens
    where that is not the configuration's."""

    position: int
    seed: int
    max_tokens: int | None = None


@dataclass(frozen=True)
class Request:
    """Rows that continue ``path``. ``stem``: tokens that other requests' paths begin with too, of
    which this path has at least the first ones; ``name`` is for messages."""

    path: tuple[int, ...]
    rows: tuple[Row, ...]
    stem: tuple[int, ...] = ()
    name: str = ""

    @property
    def about(self) -> str:
        """How a message about it begins."""
        return f"task {self.name!r}: " if self.name else ""


class Kept:
    """Stems' keys and values from one call to the next, up to ``megabytes``: first come, first kept
    (calls go over the same trees in the same order, where the latest used is the last needed).

    For one model with one adapter: make a new one where either changes.
    """

    def __init__(self, megabytes: float) -> None:
        self.room = megabytes * 2**20
        self.hits = self.misses = 0
        self._layers: dict[tuple[int, ...], list[Layer]] = {}

    def stem(self, model: Any, ids: tuple[int, ...]) -> list[Layer]:
        """Keys and values of ``ids``, which are computed if they are not here."""
        found = self._layers.get(ids)
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        device = next(iter(model.parameters())).device
        ids_1P = torch.tensor([ids], device=device)
        layers = fill(model, ids_1P, torch.arange(len(ids), device=device)[None])
        size = _size(layers)
        if size <= self.room:
            self.room -= size
            self._layers[ids] = layers
        return layers


def _size(layers: Sequence[Layer]) -> float:
    return sum(part.numel() * part.element_size() for layer in layers for part in layer)


def prefill(
    model: Any, requests: Sequence[Request], kept: Kept
) -> tuple[list[Trunk], list[list[tuple[int, int]]]]:
    """The trunks of ``requests``, and for each request's rows (trunk, point in it).

    A row's point sees the path up to, not with, the token before its node: a row begins by reading
    that token in a slot of its own.
    """
    trunks: list[Trunk] = []
    places: list[list[tuple[int, int]]] = [[] for _ in requests]
    families: dict[tuple[int, ...], list[int]] = {}
    single: list[int] = []
    for i, request in enumerate(requests):
        if request.stem:
            families.setdefault(request.stem, []).append(i)
        else:
            single.append(i)
    own = _fill_apart(model, [_needed(requests[i]) for i in single])
    for i, layers in zip(single, own, strict=True):
        _add(trunks, places, requests, [i], [len(_needed(requests[i]))], layers)
    for stem, members in families.items():
        layers = kept.stem(model, stem)
        shared = [_common(stem, _needed(requests[i])) for i in members]
        layers = _with_tails(model, layers, requests, members, shared)
        _add(trunks, places, requests, members, shared, layers, len(stem))
    front = prefix_layers(model)
    return [_behind(trunk, front) for trunk in trunks] if front else trunks, places


def _behind(trunk: Trunk, front: Sequence[Layer]) -> Trunk:
    """``trunk`` with the keys and values of a trained prefix before it, which all points see."""
    hidden = trunk.hidden
    if hidden is not None:
        hidden = torch.nn.functional.pad(hidden, (front[0][0].shape[2], 0))
    if not trunk.width:
        return Trunk(tuple(front), hidden)
    layers = tuple(
        (torch.cat([first_key, key], dim=2), torch.cat([first_value, value], dim=2))
        for (first_key, first_value), (key, value) in zip(front, trunk.layers, strict=True)
    )
    return Trunk(layers, hidden)


def _needed(request: Request) -> tuple[int, ...]:
    """What some row sees of the path."""
    return request.path[: max(row.position for row in request.rows) - 1]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    count = min(len(a), len(b))
    return next((i for i in range(count) if a[i] != b[i]), count)


def _fill_apart(model: Any, paths: Sequence[tuple[int, ...]]) -> list[list[Layer]]:
    """Keys and values of every path; those of like length in one pass."""
    device = next(iter(model.parameters())).device
    out: list[list[Layer]] = [[] for _ in paths]
    order = sorted((i for i, path in enumerate(paths) if path), key=lambda i: -len(paths[i]))
    batches: list[list[int]] = []
    for i in order:
        if batches:
            batch = batches[-1]
            width = len(paths[batch[0]])
            area = width * (len(batch) + 1)
            full = sum(len(paths[j]) for j in batch) + len(paths[i])
            if full >= (1 - PADDING) * area and area <= TOKENS_AT_ONCE:
                batch.append(i)
                continue
        batches.append([i])
    for batch in batches:
        width = len(paths[batch[0]])
        ids_BP = torch.tensor([[*paths[i], *[0] * (width - len(paths[i]))] for i in batch])
        layers = fill(model, ids_BP.to(device), torch.arange(width, device=device)[None])
        for b, i in enumerate(batch):
            size = len(paths[i])
            out[i] = [
                (key[b : b + 1, :, :size], value[b : b + 1, :, :size]) for key, value in layers
            ]
    return out


def _with_tails(
    model: Any,
    stem: list[Layer],
    requests: Sequence[Request],
    members: Sequence[int],
    shared: Sequence[int],
) -> list[Layer]:
    """The stem's keys and values, then those of the members' tails."""
    tails = [_needed(requests[i])[start:] for i, start in zip(members, shared, strict=True)]
    total = sum(len(tail) for tail in tails)
    if not total:
        return stem
    device = stem[0][0].device
    width = stem[0][0].shape[2]
    mask = torch.zeros(total, width + total, dtype=torch.bool)
    at = 0
    for start, tail in zip(shared, tails, strict=True):
        mask[at : at + len(tail), :start] = True
        block = mask[at : at + len(tail), width + at : width + at + len(tail)]
        block.copy_(torch.ones(len(tail), len(tail), dtype=torch.bool).tril())
        at += len(tail)
    ids = [token for tail in tails for token in tail]
    positions = [
        start + k for start, tail in zip(shared, tails, strict=True) for k in range(len(tail))
    ]
    return fill(
        model,
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        before=stem,
        mask=mask.to(device),
    )


def _add(
    trunks: list[Trunk],
    places: list[list[tuple[int, int]]],
    requests: Sequence[Request],
    members: Sequence[int],
    shared: Sequence[int],
    layers: list[Layer],
    width: int | None = None,
) -> None:
    """Append the trunk of ``members`` and say where their rows stand."""
    points: dict[tuple[int, int], int] = {}
    seen: list[torch.Tensor] = []
    total = int(layers[0][0].shape[2]) if layers else 0
    tail_at = total if width is None else width
    for i, start in zip(members, shared, strict=True):
        for row in requests[i].rows:
            point = points.setdefault((i, row.position), len(points))
            if point == len(seen):
                visible = torch.zeros(total, dtype=torch.bool)
                visible[: min(start, row.position - 1)] = True
                visible[tail_at : tail_at + max(0, row.position - 1 - start)] = True
                seen.append(visible)
            places[i].append((len(trunks), point))
        tail_at += len(_needed(requests[i])) - start
    hidden = None
    if not all(bool(visible.all()) for visible in seen):
        key = layers[0][0]
        visible_NU = torch.stack(seen).to(key.device)
        hidden = torch.zeros(visible_NU.shape, dtype=key.dtype, device=key.device)
        hidden.masked_fill_(~visible_NU, float("-inf"))
    trunks.append(Trunk(tuple(layers), hidden))
