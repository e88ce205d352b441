"""Attention for decoding many short continuations of few long texts, without copies of the texts.

A *trunk* holds the keys and values of a text, and of tails that leave it; a *lane* is one token
sequence that grows behind a point of a trunk. At each step a lane attends to what its point sees of
its trunk and to its own tokens, each lane in a strip of its own. So the work is that of the tokens
there are: strips of finished lanes are gone at once, and the trunk is read once for all its lanes,
query heads of a group folded into the rows of one matrix product instead of repeated keys.

The model's own code runs; only its attention function is exchanged for the time of a call.

Axes: L lanes, U slots of a trunk, T own tokens of a lane, H query heads, K key heads, G = H / K
heads of a group, D head width, E new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from treeplay.errors import ModelError
from treeplay.policy.head import without
from treeplay.policy.matmul import widen
from treeplay.policy.prefix import base_of, prefix_layers, prefix_length

NAME = "treeplay_lanes"
# What attention functions of Transformers are told that this one would leave out.
UNKNOWN = ("softcap", "s_aux", "position_bias")


class Unexchangeable(ModelError):
    """The model computes attention in a way of its own."""


class Attend(Protocol):
    """Attention of one layer: query (1, H, E, D), key and value (1, K, E, D) -> (1, E, H, D)."""

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor: ...


_now: ContextVar[Attend] = ContextVar("attend")


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    odd = [name for name in UNKNOWN if kwargs.get(name) is not None]
    if odd:
        raise Unexchangeable(f"the model's attention uses {', '.join(odd)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _now.get().attend(module, query, key, value, scale), None


AttentionInterface.register(NAME, _attention)


@contextmanager
def attending(model: Any, state: Attend) -> Iterator[None]:
    """Within, the model's attention is ``state``'s."""
    config = model.config
    before = config._attn_implementation
    token = _now.set(state)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _now.reset(token)


@torch.inference_mode()
def forward(model: Any, state: Attend, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Logits of tokens ``ids`` (B, E) at ``positions`` under ``state``'s attention. Behind a
    trained prefix positions begin at its end; what is seen of it is up to ``state``."""
    base = base_of(model)
    with attending(base, state):
        logits: torch.Tensor = base(
            input_ids=ids,
            position_ids=positions + prefix_length(model),
            # Four axes: the model takes it for a finished mask and builds none of its own.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
            use_cache=False,
        ).logits
    return logits


def check_exchanged(model: Any, layers: int) -> None:
    """Raises :class:`Unexchangeable` where not all of a model's layers asked for attention here."""
    if layers != model.config.num_hidden_layers:
        raise Unexchangeable("the model's attention cannot be exchanged")


Layer = tuple[torch.Tensor, torch.Tensor]  # keys, values: (B, K, U, D)


class Fill:
    """Keeps every layer's keys and values of a pass over new tokens.

    ``before``: keys and values that the new tokens follow; then ``mask`` (E, U + E), boolean, says
    what each sees. Without, new tokens see those before them (padding belongs at the end).
    ``front``: keys and values of a trained prefix, which all see and which are not kept.
    """

    def __init__(
        self,
        before: Sequence[Layer] | None = None,
        mask: torch.Tensor | None = None,
        front: Sequence[Layer] = (),
    ) -> None:
        self.layers: list[Layer] = []
        self._before, self._mask, self._front = before, mask, front

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        if self._before is not None:
            old = self._before[len(self.layers)]
            key, value = torch.cat([old[0], key], dim=2), torch.cat([old[1], value], dim=2)
        self.layers.append((key, value))
        mask = None if self._mask is None else self._mask[None, None]
        if self._front:
            rows, first = len(key), self._front[len(self.layers) - 1]
            mask = _behind(mask, query.shape[2], first[0].shape[2], query.device)
            key = torch.cat([first[0].expand(rows, -1, -1, -1), key], dim=2)
            value = torch.cat([first[1].expand(rows, -1, -1, -1), value], dim=2)
        out: torch.Tensor = sdpa_attention_forward(
            module, query, key, value, mask, dropout=0.0, scaling=scaling
        )[0]
        return out


def _behind(mask: torch.Tensor | None, new: int, width: int, device: torch.device) -> torch.Tensor:
    """``mask`` (or the causal one of ``new`` tokens) and ``width`` slots before it, seen by all."""
    seen = torch.ones(1, 1, new, width, dtype=torch.bool, device=device)
    if mask is None:
        mask = torch.ones(1, 1, new, new, dtype=torch.bool, device=device).tril()
    return torch.cat([seen, mask], dim=3)


def fill(
    model: Any,
    ids: torch.Tensor,
    positions: torch.Tensor,
    before: Sequence[Layer] | None = None,
    mask: torch.Tensor | None = None,
) -> list[Layer]:
    """Keys and values of ``ids`` (B, E), behind those of ``before``; those of the model's prefix
    are read, but are not among them.

    Raises :class:`Unexchangeable`.
    """
    state = Fill(before, mask, prefix_layers(model))
    head = base_of(model).get_output_embeddings()
    with without(head) if head is not None else nullcontext():  # nobody asks for logits here
        forward(model, state, ids, positions)
    check_exchanged(model, len(state.layers))
    return state.layers


@dataclass(frozen=True)
class Trunk:
    """``layers``: keys and values (1, K, U, D). ``hidden``: what points do not see, as numbers to
    add to scores, (points, U); ``None`` where all see all."""

    layers: tuple[Layer, ...]
    hidden: torch.Tensor | None

    @property
    def width(self) -> int:
        return int(self.layers[0][0].shape[2]) if self.layers else 0

    def widened(self) -> Trunk:
        """The same in the numbers that attention computes in on this machine."""
        layers = tuple((widen(key), widen(value)) for key, value in self.layers)
        return Trunk(layers, None if self.hidden is None else widen(self.hidden))


class Lanes:
    """The lanes of a batch with their strips. A lane is a number from 0 to ``count`` - 1.

    :func:`step` has the lanes of one batch or more read a token each.
    """

    def __init__(self, trunks: Sequence[Trunk], starts: Sequence[tuple[int, int]]) -> None:
        """``starts``: (trunk, point) of each lane."""
        self.trunks = [trunk.widened() for trunk in trunks]
        self.starts = list(starts)
        self.length = 0  # own tokens of every lane
        self._strips: torch.Tensor | None = None  # (layers, 2, lanes, K, T, D)
        self._room = len(starts)
        self.layers = 0  # of the pass that is going on, or was the last one
        self._arranged = False

    @property
    def count(self) -> int:
        return len(self.starts)

    def begin(self, device: torch.device) -> None:
        """Make ready for a pass of the model in which every lane reads one token more."""
        if not self._arranged:
            self._arrange(device)
        self.layers = 0
        self.length += 1

    @torch.inference_mode()
    def change(self, keep: Sequence[int]) -> None:
        """Lane ``i`` becomes what lane ``keep[i]`` was. Lanes in nobody's place are gone."""
        moved = [(to, at) for to, at in enumerate(keep) if to != at]
        if not moved and len(keep) == self.count:
            return
        if len(keep) > self._room:
            self._widen(len(keep))
        if self._strips is not None and moved:
            to, at = (torch.tensor(list(part)) for part in zip(*moved, strict=True))
            device = self._strips.device
            own = self._strips[..., : self.length, :]
            own[:, :, to.to(device)] = own[:, :, at.to(device)]
        self.starts = [self.starts[lane] for lane in keep]
        self._arranged = False

    def _arrange(self, device: torch.device) -> None:
        """Which lanes read which trunk, and what they do not see of it."""
        groups: dict[int, list[int]] = {}
        for lane, (trunk, _) in enumerate(self.starts):
            groups.setdefault(trunk, []).append(lane)
        self._groups = []
        for trunk, lanes in sorted(groups.items()):
            every = len(lanes) == self.count
            index = None if every else torch.tensor(lanes, device=device)
            hidden = self.trunks[trunk].hidden
            if hidden is not None:
                hidden = hidden[torch.tensor([self.starts[i][1] for i in lanes], device=device)]
            self._groups.append((self.trunks[trunk], index, hidden))
        self._arranged = True

    def _widen(self, room: int) -> None:
        self._room = room
        if self._strips is not None:
            old = self._strips
            self._strips = old.new_empty(*old.shape[:2], room, *old.shape[3:])
            self._strips[:, :, : old.shape[2], :, : self.length] = old[..., : self.length, :]

    def _own(self, module: Any, key: torch.Tensor, value: torch.Tensor) -> Layer:
        """This layer's strips (L, K, T, D) with the new token written."""
        layer, end = self.layers, self.length
        self.layers += 1
        strips = self._strips
        if strips is None or end > strips.shape[4]:
            layers = module.config.num_hidden_layers if strips is None else strips.shape[0]
            heads, width = key.shape[1], key.shape[3]
            wider = key.new_empty(layers, 2, self._room, heads, max(16, 2 * end), width)
            if strips is not None:
                wider[..., : end - 1, :] = strips[..., : end - 1, :]
            self._strips = strips = wider
        own = strips[layer, :, : self.count, :, :end]
        own[0, :, :, -1] = key[0].transpose(0, 1)
        own[1, :, :, -1] = value[0].transpose(0, 1)
        return own[0], own[1]

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        layer = self.layers
        own_key, own_value = self._own(module, widen(key), widen(value))
        _, heads, count, width = query.shape
        kv = key.shape[1]
        query_KGLD = (widen(query[0]) * scaling).view(kv, heads // kv, count, width)
        score_KGLT = (query_KGLD.permute(2, 0, 1, 3) @ own_key.transpose(2, 3)).permute(1, 2, 0, 3)
        if len(self._groups) == 1 and self._groups[0][1] is None:
            trunk, _, hidden = self._groups[0]
            out, share_KGLT = _read(trunk, layer, query_KGLD, hidden, score_KGLT)
        else:
            out, share_KGLT = torch.empty_like(query_KGLD), torch.empty_like(score_KGLT)
            for trunk, index, hidden in self._groups:
                part, share = _read(
                    trunk, layer, query_KGLD[:, :, index], hidden, score_KGLT[:, :, index]
                )
                out[:, :, index], share_KGLT[:, :, index] = part, share
        own_out = share_KGLT.permute(2, 0, 1, 3) @ own_value
        read = (own_out + out.permute(2, 0, 1, 3)).reshape(1, count, heads, width)
        return read.to(query.dtype)


class _Abreast:
    """The attention of several batches, whose lanes stand one behind the other."""

    def __init__(self, batches: Sequence[Lanes]) -> None:
        self._batches = batches

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        counts = [batch.count for batch in self._batches]
        split = (whole.split_with_sizes(counts, dim=2) for whole in (query, key, value))
        parts = zip(self._batches, *split, strict=True)
        return torch.cat([one.attend(module, q, k, v, scaling) for one, q, k, v in parts], dim=1)


def step(
    model: Any, batches: Sequence[Lanes], ids: Sequence[int], positions: Sequence[int]
) -> torch.Tensor:
    """Every lane of ``batches``, in their order, reads one token more, all in one pass of the
    model. Returns the logits behind it, (L, V).

    Raises :class:`Unexchangeable`.
    """
    device = next(iter(model.parameters())).device
    for batch in batches:
        batch.begin(device)
    logits = forward(
        model,
        batches[0] if len(batches) == 1 else _Abreast(batches),
        torch.tensor([list(ids)], device=device),
        torch.tensor([list(positions)], device=device),
    )[0]
    check_exchanged(model, batches[0].layers)
    return logits


def _read(
    trunk: Trunk,
    layer: int,
    query_KGLD: torch.Tensor,
    hidden_LU: torch.Tensor | None,
    own_KGLT: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What lanes read from their trunk, and the shares of attention left to their own tokens."""
    if not trunk.width:
        return torch.zeros_like(query_KGLD), own_KGLT.softmax(dim=-1)
    key, value = trunk.layers[layer]
    kv, group, count, width = query_KGLD.shape
    score = query_KGLD.reshape(kv, group * count, width) @ key[0].transpose(1, 2)
    score = score.view(kv, group, count, -1)
    if hidden_LU is not None:
        score += hidden_LU
    share = torch.cat([score, own_KGLT], dim=-1).softmax(dim=-1)
    read = share[..., : trunk.width].reshape(kv, group * count, -1) @ value[0]
    return read.view(kv, group, count, width), share[..., trunk.width :]
