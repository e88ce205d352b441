"""Float32 products by oneDNN: the same numbers up to rounding, and only where they are meant."""

from __future__ import annotations

import copy

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
from treeplay.policy.matmul import FastLinear, add_product, linear, product, quicken
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
    monkeypatch.setattr(matmul, "SMALL", 0)
    monkeypatch.setattr(matmul, "_onednn", counted)
    return made


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
