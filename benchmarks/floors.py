"""The least work that a step needs, and how fast this machine does such work.

Counted is what any implementation has to do for the unique tokens: one product with every weight
forward, one backward (the base is frozen: no gradient of its weights), three for an adapter's
weights, and attention over exactly the tokens that are seen. Softmax, norms and activations are
left out. Axes: T tokens, R rows that go through the output layer, S pairs (token, token it sees).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import fresh, sequences

from treeplay.contrast import Contrast
from treeplay.packing import Packed, pack


@dataclass(frozen=True)
class Floor:
    """``flops`` and ``bytes`` (moved to or from memory) of one step."""

    flops: float
    bytes: float

    def seconds(self, rate: dict[str, float], dtype: str) -> float:
        return max(
            self.flops / (rate[f"{dtype}_gflops"] * 1e9), self.bytes / (rate["read_gb_s"] * 1e9)
        )


def seen_pairs(packed: Packed) -> int:
    """S: over all tokens, how many tokens each sees (itself included)."""
    return sum(position + 1 for position in packed.positions)


def step_floor(model: Any, contrasts: Sequence[Contrast], backward: bool = True) -> Floor:
    """Forward (and backward) of one tree through ``model``, which has its adapter on."""
    packed = pack(sequences(contrasts))
    wanted: set[int] = set()
    number = 0
    for contrast in contrasts:
        for tail in (contrast.chosen, contrast.rejected):
            if tail:
                wanted.update(packed.slots[number][len(contrast.prefix) :])
                number += 1
    rows = len({packed.parents[slot] for slot in wanted})
    return linear_floor(model, len(packed.ids), rows, seen_pairs(packed), backward)


def linear_floor(model: Any, tokens: int, rows: int, pairs: int, backward: bool = True) -> Floor:
    """The floor for T tokens, R rows and S pairs."""
    config = model.config
    head = id(model.get_output_embeddings().weight)
    passes = 2 if backward else 1
    flops = moved = 0.0
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")  # its own: a LoRA layer also shows its base's
        if weight is None or weight.ndim != 2 or "Embedding" in type(module).__name__:
            continue
        size = weight.numel()
        count = rows if id(weight) == head else tokens
        ways = passes
        if weight.requires_grad and backward:
            ways = 3
        if backward and _reads_embeddings(name):
            ways -= 1  # nothing trained lies below: no gradient of the input
        flops += 2.0 * size * count * ways
        moved += size * weight.element_size() * passes
    layers = config.num_hidden_layers
    width = config.hidden_size
    flops += 4.0 * pairs * width * layers * (3 if backward else 1)
    element = next(iter(model.parameters())).element_size()
    if backward:  # at least one vector a token and layer is kept for the backward pass
        moved += 2.0 * tokens * width * layers * element
    return Floor(flops, moved)


def _reads_embeddings(name: str) -> bool:
    return any(f"layers.0.self_attn.{part}_proj" in name for part in "qkv") and "lora_B" not in name


def decode_floor(model: Any, steps: int, rows: int, prefill: int) -> Floor:
    """``rows`` continuations of ``steps`` tokens decoded together behind ``prefill`` tokens: every
    decoding step reads all weights once."""
    start = linear_floor(model, prefill, 0, prefill * (prefill + 1) // 2, backward=False)
    pairs = rows * (prefill + steps // 2)
    step = linear_floor(model, rows, rows, pairs, backward=False)
    return Floor(start.flops + steps * step.flops, start.bytes + steps * step.bytes)


def rates(device: str, seconds: float = 2.0) -> dict[str, Any]:
    """From a new process: GFLOP/s of matrix products and GB/s of reading, see :func:`measure`."""
    return fresh("floors.py", {"device": device, "for_s": seconds})


def measure(device: str, for_s: float) -> dict[str, Any]:
    """The rate of large square products and of products of a small model's shape (1,024 tokens,
    576 to 1,536), by PyTorch's own choice and by treeplay's, whichever is better, in fp32 and bf16,
    and of reading a quarter GiB."""
    import torch

    from treeplay.policy.matmul import product

    cuda = device.startswith("cuda")
    if not cuda:
        torch.set_num_threads(1)

    def best(work: Any, amount: float) -> float:
        work()
        times: list[float] = []
        while sum(times) < for_s / 2 or len(times) < 5:
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter() if cuda else time.process_time()
            work()
            if cuda:
                torch.cuda.synchronize()
            times.append((time.perf_counter() if cuda else time.process_time()) - start)
        return amount / max(statistics.median(times), 1e-9) / 1e9

    row: dict[str, Any] = {}
    for label, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        figures = []
        for tokens, inner, outer in ((2048, 2048, 2048), (1024, 576, 1536), (8192, 8192, 8192)):
            if (tokens == 8192) != cuda:
                continue
            x = torch.randn(tokens, inner, device=device, dtype=dtype)
            w = torch.randn(outer, inner, device=device, dtype=dtype)

            for way in (torch.nn.functional.linear, product):
                figures.append(best(partial(way, x, w), 2.0 * tokens * inner * outer))
        row[f"{label}_gflops"] = max(figures)
        row[f"{label}_gflops_each"] = figures
    data = torch.ones(2**26, device=device)
    row["read_gb_s"] = best(data.sum, data.numel() * 4)
    row["seconds"] = [0.0]
    return row


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[2]).read_text())
    print(json.dumps(measure(spec["device"], spec["for_s"])))
