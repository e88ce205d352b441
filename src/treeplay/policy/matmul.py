"""Matrix products at the speed of the processor, where PyTorch's choice holds it back.

On x86, PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 aside on processors of
other makers than Intel: half the speed, or less. oneDNN, which PyTorch carries along for bfloat16,
asks the processor. Here it is used for float32 too, on such processors alone.

bfloat16 wants instructions of its own (``avx512_bf16``, AMX, the conversions of the newest AVX2).
With plain AVX-512 oneDNN emulates them, slower than float32; with less, PyTorch's own loops are
slower still. On such processors bfloat16 matrices are widened to float32 here, a block of
the weight at a time, and the result is rounded once, as oneDNN does it. (A single row is slower so,
a handful about the same; but what a token's result is should not depend on how many others are
computed with it.)

Results differ by rounding. Other products are PyTorch's own.

Axes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch

# Weights of fewer numbers gain nothing from oneDNN. The weight decides, not the tokens.
SMALL = 1 << 13
# What a processor multiplies or converts bfloat16 with, as PyTorch names it.
BFLOAT16 = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "avx10_2")
# Numbers of a weight that are widened at a time: few enough to stay in the processor's cache.
BLOCK = 1 << 19


@functools.cache
def held_back() -> bool:
    """Whether MKL would multiply and oneDNN is faster: AVX-512 that is not Intel's."""
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    both = torch._C.has_mkl and torch._C._has_mkldnn
    return wide and both and "AuthenticAMD" in _maker() and _known()


@functools.cache
def narrow() -> bool:
    """Whether bfloat16 is multiplied without the processor's help: x86 that oneDNN declines, or
    that has no instruction for it."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return True
        has = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):
        return False
    return "avx512_bf16" in has and not any(has.get(name) for name in BFLOAT16)


def _maker() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    with info.open(encoding="utf-8", errors="replace") as lines:
        return next((line for line in lines if line.startswith("vendor_id")), "")


def _known() -> bool:
    """Whether this PyTorch has the operation, and it does what it is taken for."""
    x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        return torch.equal(_onednn(x, weight, torch.ones(4)), x @ weight.T + 1)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _fast(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and weight.numel() >= SMALL
        and held_back()
        and not torch.is_autocast_enabled("cpu")
    )


def _widened(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and narrow()
        and not torch.is_autocast_enabled("cpu")
    )


def _wide(x: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T`` in float32, (..., I) -> (..., O)."""
    outputs, inputs = weight_OI.shape
    x_NI = x.reshape(x.shape[:-1].numel(), inputs).float()
    step = max(1, BLOCK // max(1, inputs))
    if step >= outputs:
        out_NO = x_NI @ weight_OI.float().T
    else:
        out_NO = x_NI.new_empty(len(x_NI), outputs)
        for at in range(0, outputs, step):
            part = slice(at, at + step)
            torch.mm(x_NI, weight_OI[part].float().T, out=out_NO[:, part])
    return out_NO.view(*x.shape[:-1], outputs)


def widen(x: torch.Tensor) -> torch.Tensor:
    """``x``, in float32 where its own numbers are multiplied without the processor's help: for
    products of activations with one another, as in attention."""
    return x.float() if _widened(x, x) else x


def product(x: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T``, (..., I) -> (..., O), without gradient."""
    if _widened(x, weight_OI):
        return _wide(x, weight_OI).to(x.dtype)
    return _onednn(x, weight_OI, None) if _fast(x, weight_OI) else x @ weight_OI.T


def add_product(sum_NO: torch.Tensor, x_NI: torch.Tensor, weight_OI: torch.Tensor) -> None:
    """``sum += x @ weight.T`` in place, without gradient."""
    if _fast(x_NI, weight_OI):
        sum_NO += _onednn(x_NI, weight_OI, None)
    else:
        add_thin_product(sum_NO, x_NI, weight_OI)


def thin_product(x: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """:func:`product` of so few rows or columns (a LoRA layer's rank) that oneDNN is not asked."""
    return _wide(x, weight_OI).to(x.dtype) if _widened(x, weight_OI) else x @ weight_OI.T


def add_thin_product(
    sum_NO: torch.Tensor, x_NI: torch.Tensor, weight_OI: torch.Tensor, scale: float = 1.0
) -> None:
    """``sum += scale * x @ weight.T`` in place, by the matrix product itself where it can."""
    if _widened(x_NI, weight_OI):
        sum_NO.add_(_wide(x_NI, weight_OI), alpha=scale)
    else:
        sum_NO.addmm_(x_NI, weight_OI.T, alpha=scale)


def linear(x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """``x @ weight.T + bias``, (..., I) -> (..., O), without gradient."""
    if _widened(x, weight_OI):
        out = _wide(x, weight_OI)
        return (out if bias_O is None else out.add_(bias_O)).to(x.dtype)
    if _fast(x, weight_OI):
        return _onednn(x, weight_OI, bias_O)
    return torch.nn.functional.linear(x, weight_OI, bias_O)


class _Frozen(torch.autograd.Function):
    """:func:`linear` with a gradient for ``x`` alone."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight_OI)
        return linear(x, weight_OI, bias_O)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight_OI,) = ctx.saved_tensors
        return product(grad, weight_OI.T), None, None


class FastLinear(torch.nn.Linear):
    """A linear layer that computes with :func:`linear`, unless it is to learn itself."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return linear(input, self.weight, self.bias)
        learns = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if learns or not (_fast(input, self.weight) or _widened(input, self.weight)):
            return super().forward(input)
        if not input.requires_grad:
            return linear(input, self.weight, self.bias)
        out: torch.Tensor = _Frozen.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out


LINEAR = (torch.nn.Linear, FastLinear)


def quicken(model: torch.nn.Module) -> None:
    """Make the plain linear layers of ``model`` fast ones, in place; their weights stay."""
    quick = {torch.float32: held_back(), torch.bfloat16: narrow()}
    if any(quick.values()):
        for module in model.modules():
            if type(module) is not torch.nn.Linear or module.weight.device.type != "cpu":
                continue
            if quick.get(module.weight.dtype):
                module.__class__ = FastLinear
