"""LoRA layers of PEFT in as few passes over memory as possible.

PEFT adds a LoRA layer's two parts with whole-tensor operations of their own, forward and backward,
and casts activations to the adapter's dtype. Here the small product is added by the matrix product
itself. Everything is computed in the activations' dtype, as under autocast; the adapter's own
weights and their gradients keep theirs.

Axes: N tokens, I inputs, O outputs, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear

from treeplay.policy.matmul import LINEAR, add_thin_product, linear, product, thin_product


class FusedLoraLinear(LoraLinear):  # type: ignore[misc]
    """A LoRA layer with one plain adapter; anything else about it is left to PEFT."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        name = _plain_adapter(self, x)
        if name is None or args or kwargs:
            out: torch.Tensor = super().forward(x, *args, **kwargs)
            return out
        fused: torch.Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
            x,
            self.base_layer.weight,
            self.base_layer.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )
        return fused


def fuse_lora(model: torch.nn.Module) -> None:
    """Make the plain LoRA layers of ``model`` fused ones, in place; their weights stay."""
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) in LINEAR:
            module.__class__ = FusedLoraLinear


def _plain_adapter(layer: Any, x: torch.Tensor) -> str | None:
    """The name of the one adapter that ``layer`` adds in the usual way, or ``None``."""
    if layer.disable_adapters or layer.merged or layer.base_layer.weight.requires_grad:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant:
        return None
    dropout, plus_bias = layer.lora_dropout[active[0]], layer.lora_B[active[0]].bias
    drops = layer.training and getattr(dropout, "p", 0.0) > 0
    if drops or plus_bias is not None or x.dtype != layer.base_layer.weight.dtype:
        return None
    return str(active[0])


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        down_rI: torch.Tensor,
        up_Or: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        down, up = down_rI.to(x.dtype), up_Or.to(x.dtype)
        low_Nr = product(x_NI, down)
        out_NO = linear(x_NI, weight_OI, bias_O)
        add_thin_product(out_NO, low_Nr, up, scale)
        ctx.save_for_backward(x_NI, weight_OI, down_rI, up_Or, low_Nr)
        ctx.scale, ctx.shape = scale, x.shape
        return out_NO.view(*x.shape[:-1], len(weight_OI))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_NI, weight_OI, down_rI, up_Or, low_Nr = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        low_grad_Nr = product(grad_NO, up_Or.to(grad.dtype).T).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_NI = product(grad_NO, weight_OI.T)
            add_thin_product(grad_NI, low_grad_Nr, down_rI.to(grad.dtype).T)
            grad_x = grad_NI.view(ctx.shape)
        grad_down = thin_product(low_grad_Nr.T, x_NI.T).to(down_rI.dtype)
        grad_up = thin_product(grad_NO.T, low_Nr.T).mul_(ctx.scale).to(up_Or.dtype)
        return grad_x, None, None, grad_down, grad_up, None
