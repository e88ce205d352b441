"""Draw tokens from logits, so that the same seed draws the same token in every batch.

A draw is a function of one row of logits and of a key (seed, step), and of nothing else: not of the
rows beside it, and not of how a sorting routine orders equal probabilities (of equal ones the
smaller id counts as likelier).

The nucleus (Holtzman et al. 2020) is the smallest set of likeliest tokens whose probability reaches
``top_p``. Within it, the token with the largest log-probability plus Gumbel noise is taken (the
Gumbel-max trick: Yellott 1977), and a token's noise is a hash of key and id. So each token has its
own luck: where arithmetic in another order moves the logits by a little, a draw changes only if the
winner was that close to the second, with a chance of the order of the movement (some 1e-5 in
float32). Inverting a cumulative distribution, a token could also change because others that stand
before it were swapped; with logits in bfloat16 that is ten times as often.

Axes: L rows of logits, R draws, V vocabulary, N likeliest tokens of a row, C tokens of a nucleus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

Key = tuple[int, int]  # seed, step

# The nucleus is first looked for among so many of the likeliest tokens. Finding them is linear in
# the vocabulary, sorting all of it is not.
LIKELIEST = 4096
# SplitMix64 (Steele, Lea, Flood 2014): its increment and the factors of its mixing function.
GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK = 2**64 - 1


def draw(
    logits_LV: torch.Tensor,
    keys: Sequence[Key],
    temperature: float,
    top_p: float,
    lanes: Sequence[int] | None = None,
) -> tuple[list[int], list[float]]:
    """(token ids, raw log-probs at temperature 1), one of each for every key.

    ``lanes[r]`` is the row of logits that draw ``r`` is made from; row ``r`` if left out.
    Temperature 0 takes the likeliest token. A log-prob is NaN where the logits are.
    """
    lanes = range(len(keys)) if lanes is None else lanes
    logits_LV = logits_LV.float()
    prob_LV = torch.softmax(logits_LV, dim=-1)
    if temperature == 0:
        best = prob_LV.argmax(-1).tolist()
        tokens = [int(best[lane]) for lane in lanes]
    else:
        tempered = prob_LV if temperature == 1 else torch.softmax(logits_LV / temperature, dim=-1)
        if tempered.device.type == "cpu":
            tokens = _sample_cpu(tempered.numpy(), lanes, keys, top_p)
        else:
            tokens = _sample(tempered, lanes, keys, top_p)
    index = torch.tensor(list(lanes), device=prob_LV.device)
    token_R = torch.tensor(tokens, device=prob_LV.device)
    chosen = prob_LV[index, token_R].tolist()
    logps = [math.log(p) if p > 1e-30 else math.nan for p in chosen]
    for r, lane in enumerate(lanes):  # too unlikely for a float32 probability, or not a number
        if math.isnan(logps[r]):
            row = logits_LV[lane].double()
            logps[r] = float(row[tokens[r]] - torch.logsumexp(row, dim=-1))
    return tokens, logps


def _sample_cpu(
    prob_LV: np.ndarray, lanes: Sequence[int], keys: Sequence[Key], top_p: float
) -> list[int]:
    """NumPy sorts values (without their places) many times faster than PyTorch on a CPU."""
    size = prob_LV.shape[1]
    likeliest = LIKELIEST if size > 2 * LIKELIEST else size
    top_LN = _falling(np.partition(prob_LV, size - likeliest, axis=1)[:, size - likeliest :])
    mass_LN = top_LN.cumsum(axis=1, dtype=np.float64)
    ready: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    tokens = []
    for lane, key in zip(lanes, keys, strict=True):
        if lane not in ready:
            ready[lane] = _nucleus(prob_LV[lane], top_LN[lane], mass_LN[lane], top_p)
        ids_C, logp_C = ready[lane]
        tokens.append(int(ids_C[(logp_C + _gumbel(ids_C, key)).argmax()]) if len(ids_C) else 0)
    return tokens


def _nucleus(
    prob_V: np.ndarray, top_N: np.ndarray, mass_N: np.ndarray, top_p: float
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, log-probs) of the nucleus, ids rising; empty where a probability is not a number."""
    count = int(mass_N.searchsorted(top_p)) + 1  # the token that crosses top_p belongs to it
    if count > len(top_N) and len(top_N) < len(prob_V):
        top_N = _falling(prob_V)
        count = int(top_N.cumsum(dtype=np.float64).searchsorted(top_p)) + 1
    count = min(count, len(top_N))
    ids = np.flatnonzero(prob_V >= top_N[count - 1])
    if len(ids) > count:  # several as likely as the last one: the smallest ids of them
        last = np.flatnonzero(prob_V[ids] == top_N[count - 1])
        ids = np.delete(ids, last[count - len(ids) :])
    with np.errstate(divide="ignore"):
        return ids, np.log(prob_V[ids].astype(np.float64))


def _falling(values: np.ndarray) -> np.ndarray:
    falling: np.ndarray = np.sort(values, axis=-1)[..., ::-1]
    return falling


def _mix(number: int) -> int:
    number = ((number ^ (number >> 30)) * FIRST) & MASK
    number = ((number ^ (number >> 27)) * SECOND) & MASK
    return number ^ (number >> 31)


def _start(key: Key) -> int:
    seed, step = key
    return _mix((_mix(seed & MASK) + step * GAMMA) & MASK)


def _gumbel(ids_C: np.ndarray, key: Key) -> np.ndarray:
    """Standard Gumbel noise, float64, a function of (key, id)."""
    mixed = ids_C.astype(np.uint64) * np.uint64(GAMMA) + np.uint64(_start(key))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(FIRST)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(SECOND)
    mixed ^= mixed >> np.uint64(31)
    uniform = ((mixed >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    noise: np.ndarray = -np.log(-np.log(uniform))
    return noise


def _sample(
    prob_LV: torch.Tensor, lanes: Sequence[int], keys: Sequence[Key], top_p: float
) -> list[int]:
    """The same on any device, by one stable sort."""
    device = prob_LV.device
    top_LV, ids_LV = prob_LV.sort(dim=-1, descending=True, stable=True)
    mass_LV = top_LV.cumsum(-1, dtype=torch.float64)
    outside_LV = torch.zeros_like(mass_LV, dtype=torch.bool)
    outside_LV[:, 1:] = mass_LV[:, :-1] >= top_p  # the token that crosses top_p belongs to it
    logp_LV = top_LV.double().log().masked_fill(outside_LV, float("-inf"))
    lane_R = torch.tensor(list(lanes), device=device)
    start_R = torch.tensor([_signed(_start(key)) for key in keys], device=device)
    mixed = ids_LV[lane_R] * _signed(GAMMA) + start_R[:, None]
    mixed = (mixed ^ _shift(mixed, 30)) * _signed(FIRST)
    mixed = (mixed ^ _shift(mixed, 27)) * _signed(SECOND)
    mixed = mixed ^ _shift(mixed, 31)
    uniform = (_shift(mixed, 12).double() + 0.5) * 2.0**-52
    best_R1 = (logp_LV[lane_R] - (-uniform.log()).log()).argmax(-1, keepdim=True)
    tokens: list[int] = ids_LV[lane_R].gather(1, best_R1)[:, 0].tolist()
    return tokens


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _shift(values: torch.Tensor, by: int) -> torch.Tensor:
    """Shift int64 right as if it were unsigned."""
    return torch.bitwise_and(values >> by, 2 ** (64 - by) - 1)
