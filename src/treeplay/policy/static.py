"""Lanes in fixed shapes, so that a GPU replays one recorded step instead of being told each kernel.

The same attention as :class:`treeplay.policy.lanes.Lanes`, on a grid: every trunk has as many cells
as it has rows, whether a lane stands there or not, trunks are padded to one width and strips have
their full length from the beginning. Only what is in the buffers changes from step to step. On CUDA
the step is captured once as a graph; elsewhere it is run as it is (which is how it is tested).

Axes as in :mod:`treeplay.policy.lanes`; B trunks, C cells of a trunk, R = B * C cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from treeplay.policy.lanes import Trunk, check_exchanged, forward

# Trunks are padded to a multiple of this.
WIDTH = 64
# A captured graph pays for itself after about so many steps.
STEPS_WORTH = 8


class StaticLanes:
    """Lanes on a grid of fixed shape; steps and changes as those of ``Lanes``."""

    @torch.inference_mode()
    def __init__(
        self,
        trunks: Sequence[Trunk],
        starts: Sequence[tuple[int, int]],
        rows: Sequence[int],
        tokens: int,
        device: torch.device,
    ) -> None:
        """``starts``: (trunk, point) of each lane; ``rows``: how many lanes a trunk may come to
        have; ``tokens``: how many each may read."""
        self._trunks, self._tokens, self._device = trunks, tokens, device
        self._count = len(trunks), max(rows)
        self._cells: list[int] = []
        self._starts = list(starts)
        for trunk, _ in starts:
            self._cells.append(self._free(trunk))
        size = self._count[0] * self._count[1]
        longest = max(trunk.width for trunk in trunks)
        self._width = -(-longest // WIDTH) * WIDTH
        self._keys = [self._padded(layer, 0) for layer in range(self._layers())]
        self._values = [self._padded(layer, 1) for layer in range(self._layers())]
        self._ids = torch.zeros(1, size, dtype=torch.long, device=device)
        self._positions = torch.zeros(1, size, dtype=torch.long, device=device)
        self._slot = torch.zeros(1, dtype=torch.long, device=device)
        self._hidden: torch.Tensor | None = None  # (B, 1, 1, C, U)
        self._own_hidden: torch.Tensor | None = None  # (T,)
        self._strips: list[torch.Tensor] = []  # a layer: (2, R, K, T, D)
        self._length = 0
        self._layer = 0
        self._graph: Any = None
        self._logits: torch.Tensor | None = None
        self._stale = True

    def _layers(self) -> int:
        return max(len(trunk.layers) for trunk in self._trunks)

    def _free(self, trunk: int) -> int:
        first = trunk * self._count[1]
        return next(c for c in range(first, first + self._count[1]) if c not in self._cells)

    def _padded(self, layer: int, which: int) -> torch.Tensor:
        """All trunks' keys or values of a layer, (B, K, U, D)."""
        some = next(trunk.layers[layer][which] for trunk in self._trunks if trunk.width)
        heads, width = some.shape[1], some.shape[3]
        out = some.new_zeros(len(self._trunks), heads, self._width, width)
        for b, trunk in enumerate(self._trunks):
            if trunk.width:
                out[b, :, : trunk.width] = trunk.layers[layer][which][0]
        return out

    @torch.inference_mode()
    def step(self, model: Any, ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Every lane reads one token more. Returns the logits behind it, (L, V)."""
        cells = torch.tensor(self._cells, device=self._device)
        self._ids[0, cells] = torch.tensor(list(ids), device=self._device)
        self._positions[0, cells] = torch.tensor(list(positions), device=self._device)
        self._slot.fill_(self._length)
        if self._hidden is None or self._own_hidden is None:
            dtype = next(iter(model.parameters())).dtype
            shape = (self._count[0], 1, 1, self._count[1], self._width)
            self._hidden = torch.empty(shape, dtype=dtype, device=self._device)
            self._own_hidden = torch.full(
                (self._tokens,), float("-inf"), dtype=dtype, device=self._device
            )
        self._own_hidden[self._length] = 0
        if self._stale:
            self._hide(self._hidden)
        logits = self._run(model)[cells]
        self._length += 1
        return logits

    def _hide(self, hidden: torch.Tensor) -> None:
        """Write down what each cell's lane does not see of its trunk."""
        hidden.fill_(float("-inf"))
        flat = hidden.flatten(0, 3)
        for cell, (number, point) in zip(self._cells, self._starts, strict=True):
            trunk = self._trunks[number]
            flat[cell, : trunk.width] = 0 if trunk.hidden is None else trunk.hidden[point]
        self._stale = False

    def _run(self, model: Any) -> torch.Tensor:
        worth = self._device.type == "cuda" and self._tokens >= STEPS_WORTH
        if not worth:
            return self._forward(model)
        if self._graph is None:
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):  # allocates the strips; writing the same slot again is harmless
                    self._forward(model)
            torch.cuda.current_stream().wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._logits = self._forward(model)
        self._graph.replay()
        assert self._logits is not None
        return self._logits

    def _forward(self, model: Any) -> torch.Tensor:
        self._layer = 0
        logits = forward(model, self, self._ids, self._positions)[0]
        check_exchanged(model, self._layer)
        return logits

    @torch.inference_mode()
    def change(self, keep: Sequence[int]) -> None:
        """Lane ``i`` becomes what lane ``keep[i]`` was. Lanes in nobody's place are gone."""
        if list(keep) == list(range(len(self._cells))):
            return
        old, starts = self._cells, self._starts
        self._cells = [old[lane] for lane in dict.fromkeys(keep)]  # taken
        cells: list[int] = []
        copies: list[tuple[int, int]] = []
        for lane in keep:
            if old[lane] not in cells:
                cells.append(old[lane])
                continue
            fresh = self._free(starts[lane][0])
            self._cells.append(fresh)
            copies.append((fresh, old[lane]))
            cells.append(fresh)
        if copies:
            to, at = (torch.tensor(list(p), device=self._device) for p in zip(*copies, strict=True))
            for strip in self._strips:
                strip[:, to] = strip[:, at]
        self._cells, self._starts = cells, [starts[lane] for lane in keep]
        self._stale = True

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        layer = self._layer
        self._layer += 1
        hidden, own_hidden = self._hidden, self._own_hidden
        assert hidden is not None
        assert own_hidden is not None
        (trunks, cells), (_, heads, size, width) = self._count, query.shape
        kv = key.shape[1]
        if layer == len(self._strips):
            self._strips.append(key.new_zeros(2, size, kv, self._tokens, width))
        own_key, own_value = self._strips[layer]
        own_key.index_copy_(2, self._slot, key[0].transpose(0, 1)[:, :, None])
        own_value.index_copy_(2, self._slot, value[0].transpose(0, 1)[:, :, None])
        # (K, G, B, C, D)
        grid = (query[0] * scaling).view(kv, heads // kv, trunks, cells, width)
        own = grid.permute(2, 3, 0, 1, 4).reshape(size, kv, heads // kv, width)
        own_score = (own @ own_key.transpose(2, 3)).view(trunks, cells, kv, heads // kv, -1)
        own_score = own_score.permute(0, 2, 3, 1, 4) + own_hidden  # (B, K, G, C, T)
        if not self._width:
            share, read = own_score.softmax(-1), torch.zeros_like(grid.permute(2, 0, 1, 3, 4))
        else:
            folded = grid.permute(2, 0, 1, 3, 4).reshape(trunks, kv, -1, width)
            score = folded @ self._keys[layer].transpose(2, 3)
            score = score.view(trunks, kv, heads // kv, cells, self._width) + hidden
            share = torch.cat([score, own_score], dim=-1).softmax(-1)
            seen = share[..., : self._width].reshape(trunks, kv, -1, self._width)
            read = (seen @ self._values[layer]).view(trunks, kv, heads // kv, cells, width)
            share = share[..., self._width :]
        share = share.permute(0, 3, 1, 2, 4).reshape(size, kv, heads // kv, -1)
        out: torch.Tensor = (share @ own_value).reshape(1, size, heads, width)
        out += read.permute(0, 3, 1, 2, 4).reshape(1, size, heads, width)
        return out
