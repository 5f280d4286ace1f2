"""What the Trainer of transformers needs: our optimizer as a factory, lean checkpoints, and a look at gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .inject import adapted, setups
from .life import trained_adapters
from .optimizer import LowRankOptimizer, optimizer

__all__ = ["optimizer_factory", "trained_state", "without_gradient"]


def optimizer_factory() -> Callable[..., LowRankOptimizer]:
    """`optimizer`, as an unmodified Trainer of transformers asks for it.

    Examples
    --------
    ``Trainer(model, args, ..., optimizer_cls_and_kwargs=(lb.optimizer_factory, {"lr": 1e-3}))`` makes the optimizer
    when the model is on its device and wrapped; ``optimizers=(lb.optimizer(model, lr=1e-3), None)`` does as well
    where nothing replaces the parameters, that is, without FSDP.

    Notes
    -----
    In a loop of one's own: ``lb.adapt(model, ...)``, then ``DistributedDataParallel(model)`` or, for FSDP2,
    ``fully_shard(block)`` for every block and ``fully_shard(model)``, and then ``lb.optimizer(model, ...)``. Rules
    see whole factors: the shards of all layers of a bucket are gathered at once, and the step is scattered
    back. The state of a bucket is whole on every process, so it continues on any number of them;
    ``torch.distributed.checkpoint.state_dict`` knows how to save and load it.
    """
    return optimizer


def without_gradient(model: nn.Module) -> tuple[str, ...]:
    """Adapters, as ``path (name)``, none of whose parameters has a gradient; call it after a backward pass.

    All of them, for instance, where activations are recomputed by a reentrant checkpoint and the input of the
    block needs no gradient: ``model.enable_input_require_grads()`` is the remedy.
    """
    return tuple(
        f"{path} ({name})"
        for path, name, adapter in trained_adapters(model)
        if any(p.requires_grad for p in adapter.parameters()) and all(p.grad is None for p in adapter.parameters())
    )


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a run changes, or started from: parameters that train, all arrays of the active adapters, moved weights.

    A subset of ``model.state_dict()``: loading it into an equally adapted model, with ``strict=False``, continues.
    """
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    for path, name, adapter in trained_adapters(model):
        names |= {f"{path}.adapters.adapter_{name}.{key}" for key in adapter.state_dict()}
        if setups(model)[name].rebased:
            names |= {f"{path}.base.{key}" for key in adapted(model)[path].base.state_dict()}
    return {key: value for key, value in model.state_dict().items() if key in names}
