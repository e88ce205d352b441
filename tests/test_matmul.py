"""Float32 products by oneDNN, bfloat16 ones widened: the same up to rounding, where it is meant."""

from __future__ import annotations

import copy
import platform
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_llama
from test_groups import CONFIG, adapted, gradient, policy_of, same, trees

from treeplay.groups import make_groups
from treeplay.lora import with_adapter
from treeplay.opponent import score_opponent
from treeplay.policy import matmul
from treeplay.policy.head import head_of
from treeplay.policy.lora import FusedLoraLinear, fuse_lora
from treeplay.policy.matmul import (
    FastLinear,
    add_product,
    add_thin_product,
    linear,
    product,
    quicken,
    thin_product,
)
from treeplay.policy.sample import Request, Row, SampleConfig, sample
from treeplay.policy.score import packed_logps

pytestmark = pytest.mark.skipif(not matmul._known(), reason="this PyTorch has no such oneDNN")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a processor that MKL holds back, however small the product; counts oneDNN's calls."""
    made: list[int] = []
    onednn = matmul._onednn

    def counted(*args: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return onednn(*args)

    monkeypatch.setattr(matmul, "held_back", lambda: True)
    monkeypatch.setattr(matmul, "narrow", lambda: False)
    monkeypatch.setattr(matmul, "SMALL", 0)
    monkeypatch.setattr(matmul, "_onednn", counted)
    return made


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a processor without bfloat16, however small the product, in blocks; counts products."""
    made: list[int] = []
    wide = matmul._wide

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return wide(x, weight)

    monkeypatch.setattr(matmul, "narrow", lambda: True)
    monkeypatch.setattr(matmul, "SMALL", 0)
    monkeypatch.setattr(matmul, "BLOCK", 48 * 10)
    monkeypatch.setattr(matmul, "_wide", counted)
    return made


@pytest.mark.parametrize(
    ("takes", "has", "helped"),
    [
        (False, {"avx512_bf16": False}, False),  # AVX2
        (True, {"avx512_bf16": False, "amx_bf16": False}, False),  # AVX-512 that emulates it
        (True, {"avx512_bf16": True}, True),
        (True, {"avx512_bf16": False, "avx_ne_convert": True}, True),
        (True, {"avx512_bf16": False, "amx_bf16": True}, True),
        (True, {}, True),  # a PyTorch that does not say
    ],
)
def test_processors_that_multiply_bfloat16(
    monkeypatch: pytest.MonkeyPatch, takes: bool, has: dict[str, bool], helped: bool
) -> None:
    ops = SimpleNamespace(mkldnn=SimpleNamespace(_is_mkldnn_bf16_supported=lambda: takes))
    monkeypatch.setattr(torch, "ops", ops)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert matmul.narrow.__wrapped__() is not helped


def near(one: torch.Tensor, other: torch.Tensor) -> None:
    """As near as bfloat16's eight bits let two orders of summing be."""
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    assert (one.float() - other.float()).norm() <= 2**-7 * other.float().norm()


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.shape == other.shape
    assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("shape", [(1,), (37,), (2, 5)])
def test_products_are_the_same_up_to_rounding(calls: list[int], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*shape, 48), torch.randn(96, 48), torch.randn(96)
    close(product(x, weight), x @ weight.T)
    close(product(x[..., :32], weight.T[:, 7:39]), x[..., :32] @ weight[7:39])
    close(linear(x, weight, bias), x @ weight.T + bias)
    flat, total = x.reshape(-1, 48), torch.randn(x.numel() // 48, 96)
    wanted = total + flat @ weight.T
    add_product(total, flat, weight)
    close(total, wanted)
    assert len(calls) == 4


def test_other_numbers_and_small_products_are_left_alone(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 48), torch.randn(96, 48)
    for dtype in (torch.bfloat16, torch.float64):
        x_d, weight_d = x.to(dtype), weight.to(dtype)
        assert torch.equal(product(x_d, weight_d), x_d @ weight_d.T)
        total = torch.zeros(5, 96, dtype=dtype)
        add_product(total, x_d, weight_d)
        assert torch.equal(linear(x_d, weight_d, None), x_d @ weight_d.T)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, None).dtype == torch.bfloat16
    monkeypatch.setattr(matmul, "SMALL", weight.numel() + 1)
    assert torch.equal(product(x, weight), x @ weight.T)
    assert not calls


def test_a_layer_that_learns_keeps_its_gradient(calls: list[int]) -> None:
    layer = torch.nn.Linear(48, 96)
    quicken(layer)
    assert type(layer) is FastLinear
    x = torch.randn(3, 48, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert not calls
    with torch.no_grad():
        close(layer(x), x @ layer.weight.T + layer.bias)
    assert calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_layer_hands_the_gradient_on(
    calls: list[int], widened: list[int], dtype: torch.dtype
) -> None:
    """As under an adapter with dropout, or behind a trained prefix."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 96).to(dtype).requires_grad_(False)
    x, theirs = (torch.randn(2, 5, 48).to(dtype) for _ in range(2))
    theirs.copy_(x).requires_grad_()
    wanted = layer(theirs)
    wanted.square().sum().backward()
    layer.__class__ = FastLinear
    ours = x.requires_grad_()
    out = layer(ours)
    out.square().sum().backward()
    assert (len(calls), len(widened)) == ((2, 0) if dtype == torch.float32 else (0, 2))
    assert ours.grad is not None
    assert theirs.grad is not None
    for one, other in ((out.detach(), wanted.detach()), (ours.grad, theirs.grad)):
        (close if dtype == torch.float32 else near)(one, other)
    assert layer.weight.grad is None


def test_log_probs_gradients_and_samples_are_the_same(calls: list[int]) -> None:
    model = tiny_llama()
    other = copy.deepcopy(model)
    path = tuple(range(3, 33))
    rows = tuple(Row(position, seed) for seed, position in enumerate((12, 20, 20, 30)))
    config = SampleConfig(max_tokens=8)
    contrasts = score_opponent(policy_of(tiny_llama()), trees(2, 2), CONFIG)

    def everything(model: object) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, ...]]]:
        (logps,) = packed_logps(model, [path], [(5, 30)])
        made = sample(model, [Request(path, rows)], config, frozenset())
        grad, _, _ = gradient(adapted(), make_groups(contrasts), CONFIG, 512)
        return logps, grad, [one.ids for one in made[0]]

    with_it = everything(model)
    assert any(type(module) is FastLinear for module in model.modules())
    count = len(calls)
    assert count > 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "held_back", lambda: False)
        without = everything(other)
    assert len(calls) == count
    torch.testing.assert_close(with_it[0], without[0], rtol=1e-5, atol=1e-5)
    same(with_it[1], without[1])
    assert with_it[2] == without[2]


def test_a_fast_model_takes_an_adapter(calls: list[int]) -> None:
    base = tiny_llama()
    quicken(base)
    model = with_adapter(base, CONFIG.lora, None)
    fuse_lora(model)
    assert any(isinstance(module, FusedLoraLinear) for module in model.modules())
    assert head_of(model) is not None
    assert model.unload() is base
    assert set(base.state_dict()) == set(tiny_llama().state_dict())


@pytest.mark.parametrize("shape", [(1,), (37,), (2, 5)])
def test_widened_products_are_rounded_once(widened: list[int], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight, bias = (
        part.bfloat16() for part in (torch.randn(*shape, 48), torch.randn(96, 48), torch.randn(96))
    )
    exact = x.float() @ weight.float().T
    # Of the same float32 numbers, so to the last bit.
    wide = matmul._wide(x, weight)
    close(wide, exact)
    assert torch.equal(product(x, weight), wide.bfloat16())
    assert torch.equal(thin_product(x, weight), wide.bfloat16())
    assert torch.equal(linear(x, weight, bias), (wide + bias).bfloat16())
    assert torch.equal(linear(x[..., :0, :], weight, bias), (wide + bias)[..., :0, :].bfloat16())
    near(product(x[..., :32], weight.T[:, 7:39]), (x[..., :32] @ weight[7:39]))
    flat, total = x.reshape(-1, 48), torch.randn(x.numel() // 48, 96)
    wanted = total + exact.reshape(-1, 96)
    add_product(total, flat, weight)
    close(total, wanted)
    low = total.bfloat16()
    add_thin_product(low, flat, weight, 0.5)
    near(low, (total + 0.5 * exact.reshape(-1, 96)).bfloat16())
    assert len(widened) == 8


def test_float32_and_autocast_are_not_widened(widened: list[int]) -> None:
    x, weight = torch.randn(5, 48), torch.randn(96, 48)
    assert torch.equal(product(x, weight), x @ weight.T)
    assert matmul.widen(x) is x
    low, low_weight = x.bfloat16(), weight.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, None).dtype == torch.bfloat16
        assert torch.equal(product(low, low_weight), low @ low_weight.T)
        assert matmul.widen(low) is low
    assert not widened
    assert matmul.widen(low).dtype == torch.float32


def test_a_widened_model_scores_learns_and_samples_as_before(widened: list[int]) -> None:
    path = tuple(range(3, 33))
    rows = tuple(Row(position, seed) for seed, position in enumerate((12, 20, 20, 30)))
    config = SampleConfig(max_tokens=8, temperature=0.0)
    contrasts = score_opponent(policy_of(tiny_llama()), trees(2, 2), CONFIG)

    def player() -> Any:
        """As :func:`adapted`, with the base model in bfloat16 and the adapter in float32."""
        model = with_adapter(tiny_llama().bfloat16(), CONFIG.lora, None)
        for (_, ours), (_, theirs) in zip(
            model.named_parameters(), adapted().named_parameters(), strict=True
        ):
            ours.data.copy_(theirs.data)
        return model.train()

    def everything() -> tuple[torch.Tensor, torch.Tensor, list[list[float]]]:
        model = tiny_llama().bfloat16()
        (logps,) = packed_logps(model, [path], [(5, 30)])
        made = sample(model, [Request(path, rows)], config, frozenset())
        grad, _, _ = gradient(player(), make_groups(contrasts), CONFIG, 512)
        return logps, grad, [list(one.logps) for one in made[0]]

    logps, grad, sampled = everything()
    assert len(widened) > 100
    # Activations that are computed again are computed in the same numbers.
    again = player()
    again.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert torch.equal(gradient(again, make_groups(contrasts), CONFIG, 512)[0], grad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "narrow", lambda: False)
        plain_logps, plain_grad, plain_sampled = everything()
    torch.testing.assert_close(logps, plain_logps, rtol=2e-2, atol=2e-2)
    # bfloat16 itself moves gradients by some percent: widened ones are no further off than others.
    exact, _, _ = gradient(adapted(), make_groups(contrasts), CONFIG, 512)
    assert (grad - exact).norm() <= 1.1 * (plain_grad - exact).norm() < 0.15 * exact.norm()
    for one, other in zip(sampled, plain_sampled, strict=True):
        torch.testing.assert_close(one[0], other[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("forward", [False, True])
def test_autocast_of_one_pass_alone(widened: list[int], forward: bool) -> None:
    """Attention computes a backward pass in the numbers of its forward pass."""
    model = tiny_llama().bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=forward):
        (logps,) = packed_logps(model, [tuple(range(3, 33))], [(5, 30)])
    with torch.autocast("cpu", torch.bfloat16, enabled=not forward):
        torch.autograd.backward(logps.sum())
    (weight,) = model.model.layers[0].self_attn.k_proj.parameters()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
