"""Loading a GGUF model: as Transformers does it, and with the file read once.

    python benchmarks/loading.py [MODEL.gguf] [--repeats 3]

In turn, in one process, each `--repeats` times behind one of each that is not counted; the weights
and the vocabulary must be the same. CPU seconds (and wall-clock), the middle one of each.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from treeplay.policy.model import EMBEDDED, ModelConfig, Policy, load_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=EMBEDDED)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    config = ModelConfig(args.model, dtype="bfloat16", threads=1)

    def once() -> Policy:
        return load_policy(config)

    def plainly() -> Policy:
        with mock.patch("treeplay.policy.model.gguf_read_once", contextlib.nullcontext):
            return load_policy(config)

    same(once(), plainly())
    taken = [(timed(once), timed(plainly)) for _ in range(args.repeats)]
    ours, theirs = (middle([pair[i] for pair in taken]) for i in (0, 1))
    print(f"{args.model}: read once {ours[0]:.1f} s of CPU ({ours[1]:.1f} s), ", end="")
    print(f"as Transformers does {theirs[0]:.1f} s ({theirs[1]:.1f} s): {theirs[0] / ours[0]:.1f}x")


def same(ours: Policy, theirs: Policy) -> None:
    state, other = ours.model.state_dict(), theirs.model.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    assert ours.tokenizer.backend_tokenizer.to_str() == theirs.tokenizer.backend_tokenizer.to_str()


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def middle(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


if __name__ == "__main__":
    main()
