"""Float32 matrix products at the speed of the processor, where PyTorch's choice holds it back.

On x86, PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 aside on processors of
other makers than Intel: half the speed, or less. oneDNN, which PyTorch carries along for bfloat16,
asks the processor. Here it is used for float32 too, on such processors alone, and the results
differ by rounding. Products of other dtypes, and small ones, are PyTorch's own.

Axes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

# Weights of fewer numbers gain nothing. The weight decides, not the tokens: what a token's result
# is should not depend on how many others are computed with it.
SMALL = 1 << 13


@functools.cache
def held_back() -> bool:
    """Whether MKL would multiply and oneDNN is faster: AVX-512 that is not Intel's."""
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    both = torch._C.has_mkl and torch._C._has_mkldnn
    return wide and both and "AuthenticAMD" in _maker() and _known()


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


def product(x: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T``, (..., I) -> (..., O), without gradient."""
    return _onednn(x, weight_OI, None) if _fast(x, weight_OI) else x @ weight_OI.T


def add_product(sum_NO: torch.Tensor, x_NI: torch.Tensor, weight_OI: torch.Tensor) -> None:
    """``sum += x @ weight.T`` in place, without gradient."""
    if _fast(x_NI, weight_OI):
        sum_NO += _onednn(x_NI, weight_OI, None)
    else:
        sum_NO.addmm_(x_NI, weight_OI.T)


def linear(x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """``x @ weight.T + bias``, (..., I) -> (..., O), without gradient."""
    if _fast(x, weight_OI):
        return _onednn(x, weight_OI, bias_O)
    return torch.nn.functional.linear(x, weight_OI, bias_O)


class FastLinear(torch.nn.Linear):
    """A linear layer that computes with :func:`linear` wherever no gradient is wanted."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        wanted = input.requires_grad or self.weight.requires_grad
        if torch.is_grad_enabled() and wanted:
            return super().forward(input)
        return linear(input, self.weight, self.bias)


LINEAR = (torch.nn.Linear, FastLinear)


def quicken(model: torch.nn.Module) -> None:
    """Make the plain linear layers of ``model`` fast ones, in place; their weights stay."""
    if held_back():
        for module in model.modules():
            if type(module) is torch.nn.Linear and module.weight.dtype == torch.float32:
                module.__class__ = FastLinear
