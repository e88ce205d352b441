"""KL from the opponent: tiled equals whole, packed equals plain, no (rows x vocabulary) tensor."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from conftest import tiny_llama
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from treeplay.losses import kl_divergence
from treeplay.policy.head import Head, logps_of
from treeplay.policy.kl import gather_logps_and_kl
from treeplay.policy.score import packed_logps, packed_scores, plain_scores


def truth_of(
    hidden: torch.Tensor, other: torch.Tensor, head: Head, rows: Any, tokens: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    def logits(states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = head.layer(states).float() * head.scale
        return head.softcap * torch.tanh(out / head.softcap) if head.softcap else out

    mine, theirs = logits(hidden), logits(other)
    kl = kl_divergence(torch.log_softmax(theirs, -1), torch.log_softmax(mine, -1))
    return logps_of(mine, rows, tokens), kl


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, 0.0), (0.5, 0.0), (0.7, 5.0)])
@pytest.mark.parametrize("bias", [True, False])
def test_tiles_equal_whole_logits(scale: float, softcap: float, bias: bool) -> None:
    """More rows and words than one tile holds, a row with several tokens, one with none."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 9001, bias=bias)
    layer.weight.data *= 10
    head = Head(layer, scale, softcap)
    hidden = torch.randn(300, 16, requires_grad=True)
    other = (hidden + torch.randn(300, 16) * torch.rand(300, 1)).detach()
    other[11] = hidden[11].detach()  # a state in which the two agree
    rows = torch.arange(600) // 2
    rows = rows[rows != 7]
    tokens = torch.randint(0, 9001, (len(rows),))
    weight_U, weight_R = torch.randn(len(rows)), torch.randn(300)

    def total(both: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return (both[0] * weight_U).sum() + (both[1] * weight_R).sum()

    wanted = truth_of(hidden, other, head, rows, tokens)
    assert wanted[1].max() > 1
    (truth,) = torch.autograd.grad(total(wanted), hidden)
    trained = gather_logps_and_kl(head, hidden, other, rows, tokens)
    (pieces,) = torch.autograd.grad(total(trained), hidden, retain_graph=True)
    torch.testing.assert_close(pieces, truth, rtol=1e-4, atol=1e-4)
    layer.requires_grad_(False)
    tiled = gather_logps_and_kl(head, hidden, other, rows, tokens)
    for one in (trained, tiled):
        torch.testing.assert_close(one[0], wanted[0], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(one[1], wanted[1], rtol=1e-4, atol=1e-4)
        assert one[1].min() >= 0
        assert one[1][11] < 1e-5
    (gradient,) = torch.autograd.grad(total(tiled), hidden)
    assert (gradient - truth).norm() < 1e-5 * truth.norm()


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most elements that any tensor made inside has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return out


def test_no_tensor_holds_rows_times_vocabulary() -> None:
    rows, words, width = 600, 20_000, 8
    layer = torch.nn.Linear(width, words, bias=False).requires_grad_(False)
    hidden = torch.randn(rows, width, requires_grad=True)
    with Largest() as seen:  # type: ignore[no-untyped-call]
        logps, kl = gather_logps_and_kl(
            Head(layer, 1.0, 0.0),
            hidden,
            torch.randn(rows, width),
            torch.arange(rows),
            torch.zeros(rows, dtype=torch.long),
        )
        (logps.sum() + kl.sum()).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert words * width <= seen.elements <= 256 * 4096 < rows * words / 10


def player(seed: int = 0, **changes: Any) -> Any:
    """The tiny model with an adapter that changes it."""
    model = get_peft_model(
        tiny_llama(**changes),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


SEQUENCES = [(5, 6, 7, 8, 9), (5, 6, 7, 10, 11, 12), (5, 6, 7), (20, 21)]
SPANS = [(3, 5), (3, 6), (3, 3), (1, 2)]

Scores = Callable[[Any, Any, Any, Callable[[], AbstractContextManager[Any]]], Any]


def gradient(model: Any, score: Scores) -> tuple[list[torch.Tensor], list[torch.Tensor], Any]:
    model.zero_grad()
    logps, kls = score(model, SEQUENCES, SPANS, model.disable_adapter)
    (torch.cat(logps).sum() + 3 * torch.cat(kls).sum()).backward()  # type: ignore[no-untyped-call]
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return logps, kls, torch.cat(grads)


@pytest.mark.parametrize("known", [True, False])
def test_packed_equals_plain(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known:
        monkeypatch.setattr("treeplay.policy.score.head_of", lambda model: None)
    model = player()
    packed, plain = gradient(model, packed_scores), gradient(model, plain_scores)
    for a, b in ((packed[0], plain[0]), (packed[1], plain[1])):
        assert [len(x) for x in a] == [end - start for start, end in SPANS]
        torch.testing.assert_close(torch.cat(a), torch.cat(b), atol=1e-5, rtol=1e-4)
    assert torch.cat(packed[1]).min() > 1e-3  # the adapter does change the model
    assert packed[2].norm() > 1e-3
    assert (packed[2] - plain[2]).norm() < 1e-4 * plain[2].norm()


def test_log_probs_are_those_without_an_opponent() -> None:
    model = player()
    with torch.no_grad():
        logps, _ = packed_scores(model, SEQUENCES, SPANS, model.disable_adapter)
        alone = packed_logps(model, SEQUENCES, SPANS)
    torch.testing.assert_close(torch.cat(logps), torch.cat(alone), atol=1e-6, rtol=0)
    nothing = packed_scores(model, [(1, 2)], [(2, 2)], model.disable_adapter)
    assert [len(x) for side in nothing for x in side] == [0, 0]
