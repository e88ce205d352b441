"""The adapter that is trained: its shape, the layers it sits on, the weights it computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from treeplay.errors import ModelError
from treeplay.policy.model import load_adapter, quiet
from treeplay.policy.prefix import take_off


@dataclass(frozen=True)
class LoraSettings:
    """The adapter's shape. ``targets``: module names, or ``all-linear``. ``layers``: 0 for all of
    them, N for the last N, or a list of numbers from 0; below the lowest of them nothing is kept
    for a backward pass, and none runs. ``dtype``: what the adapter computes in: ``float32``, or
    ``model`` for the model's own, faster in bfloat16; the weights that the optimizer changes, and
    that are saved, are float32 either way."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)
    layers: int | tuple[int, ...] = 0
    dtype: Literal["float32", "model"] = "float32"


def with_adapter(base: Any, config: LoraSettings, start_from: Path | None) -> Any:
    """``base`` with a new adapter on it, or with the one in ``start_from``, trainable.

    Raises :class:`ModelError` for targets or layers that the model does not have.
    """
    if start_from is not None:
        return load_adapter(base, start_from, trainable=True)
    targets: Any = list(config.targets)
    all_linear = targets == ["all-linear"]
    where: dict[str, Any] = {}
    if config.layers:
        name, blocks = _blocks(base)
        chosen = _chosen(config.layers, len(blocks))
        where = {"layers_to_transform": chosen, "layers_pattern": name.rpartition(".")[2]}
        if all_linear:
            targets = sorted(
                {
                    path.rpartition(".")[2]
                    for layer in chosen
                    for path, module in blocks[layer].named_modules()
                    if isinstance(module, (torch.nn.Linear, Conv1D))
                }
            )
    elif all_linear:
        targets = "all-linear"
    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        **where,
    )
    try:
        with quiet():
            return get_peft_model(base, lora)
    except ValueError as error:
        raise ModelError(
            f"cannot put an adapter on {', '.join(config.targets)}: {error}; name modules of "
            "this model in train.lora.targets, or all-linear"
        ) from error


def check_adapter(base: Any, config: LoraSettings) -> None:
    """Raises what :func:`with_adapter` would for ``base``, which is as before afterwards: wrong
    targets are to be told before trees are grown, not after."""
    if config.targets != ("all-linear",) or config.layers:
        with torch.random.fork_rng():
            take_off(with_adapter(base, config, None))


def _blocks(base: Any) -> tuple[str, torch.nn.ModuleList]:
    """The name and the list of the model's layers."""
    for name, module in base.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == base.config.num_hidden_layers:
            return name, module
    raise ModelError(
        f"cannot tell the layers of a {base.config.model_type} model apart; set train.lora.layers=0"
    )


def _chosen(layers: int | tuple[int, ...], count: int) -> list[int]:
    chosen = list(range(count - layers, count)) if isinstance(layers, int) else sorted(set(layers))
    if chosen[0] < 0 or chosen[-1] >= count:
        raise ModelError(
            f"train.lora.layers asks for {layers}, but the model has {count} layers (0 to "
            f"{count - 1})"
        )
    return chosen


@contextmanager
def checkpointing(base: Any, wanted: bool) -> Iterator[None]:
    """Keep only each layer's input for the backward pass and compute the rest again in it (Chen et
    al. 2016, arXiv 1604.06174): the same gradient, less memory, one more forward pass.

    Raises :class:`ModelError` for a model that cannot.
    """
    if not wanted:
        yield
        return
    arguments = {"use_reentrant": False}
    new = hasattr(base, "activation_checkpointing_enable")  # Transformers 5.2x renamed it
    try:
        if new:
            base.activation_checkpointing_enable(arguments)
        else:
            base.gradient_checkpointing_enable(arguments)
    except ValueError as error:
        raise ModelError(f"{error}; set train.checkpointing=false") from error
    # Transformers makes the embeddings ask for a gradient, which only the reentrant form needs; it
    # would run a backward pass through the layers below the adapter.
    if hasattr(base, "_require_grads_hook"):
        base.disable_input_require_grads()
    try:
        yield
    finally:
        if new:
            base.activation_checkpointing_disable()
        else:
            base.gradient_checkpointing_disable()


class Weights:
    """The adapter's float32 weights (``masters``), by name, and those that the model computes with:
    the same ones, or copies in the model's dtype."""

    def __init__(self, model: Any, config: LoraSettings) -> None:
        own = {n: p for n, p in model.named_parameters() if p.requires_grad}
        base = next(iter(model.parameters())).dtype  # the embeddings, which have no adapter
        self.masters: dict[str, torch.nn.Parameter] = own
        self.used: list[torch.nn.Parameter] = list(own.values())
        self.sums: list[torch.Tensor | None] = [None] * len(own)
        if config.dtype == "model" and base != torch.float32:
            self.masters = {n: torch.nn.Parameter(p.detach().float()) for n, p in own.items()}
            for parameter in self.used:
                parameter.data = parameter.data.to(base)

    def spread(self) -> None:
        """Bring the masters' values to the model."""
        for master, used in zip(self.masters.values(), self.used, strict=True):
            if master is not used:
                used.data.copy_(master.data)

    def opponent(self, model: Any, *, base: bool) -> Callable[[], AbstractContextManager[None]]:
        """What makes ``model`` its own opponent for a while: the adapter as it is now, or none
        (``base``). Dropout is off meanwhile."""
        kept = [] if base else [used.detach().clone() for used in self.used]

        @contextmanager
        def swapped() -> Iterator[None]:
            now = [used.data for used in self.used]
            for used, then in zip(self.used, kept, strict=True):
                used.data = then
            try:
                yield
            finally:
                for used, data in zip(self.used, now, strict=True):
                    used.data = data

        @contextmanager
        def opponent() -> Iterator[None]:
            training = model.training
            model.eval()
            try:
                with model.disable_adapter() if base else swapped():
                    yield
            finally:
                model.train(training)

        return opponent

    def keep(self) -> None:
        """Add the gradients that a backward pass left to those of the step, in float32."""
        for i, used in enumerate(self.used):
            gradient, used.grad = used.grad, None
            if gradient is not None:
                so_far = self.sums[i]
                self.sums[i] = gradient.float() if so_far is None else so_far.add_(gradient)

    def drop(self) -> None:
        """Forget gradients on the model: of a step before, of a backward pass that failed."""
        for used in self.used:
            used.grad = None

    def ready(self) -> None:
        """Give the masters the gradient of the whole step."""
        for i, master in enumerate(self.masters.values()):
            master.grad, self.sums[i] = self.sums[i], None

    def whole(self) -> None:
        """Let the model have the masters themselves, to be saved."""
        for master, used in zip(self.masters.values(), self.used, strict=True):
            used.data = master.data
