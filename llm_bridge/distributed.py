"""Factors that are sharded over processes: gathered whole for an update rule, and scattered back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["gather", "placements", "scatter_", "unwrapped"]


def unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel or torch.compile; sharding with ``fully_shard`` wraps nothing."""
    while isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model._orig_mod
    return model


def placements(tensor: Tensor) -> tuple[object, ...] | None:
    """How a DTensor is spread, as ``fully_shard`` (FSDP2) makes one of every parameter; None for any other tensor.

    By the attribute, because importing the class takes longer than many a run without it.
    """
    return getattr(tensor, "placements", None)


def gather(column: list[Any]) -> Tensor:
    """Equal tensors on a new first axis: (k, ...). Sharded ones are made whole by one collective for all of them."""
    if placements(column[0]) is None:
        return torch.stack([t.detach() for t in column])
    from torch.distributed.tensor import DTensor

    first: Any = column[0]
    local = torch.stack([t.detach().to_local() for t in column])
    shape = torch.Size((len(column), *first.shape))
    return DTensor.from_local(
        local, first.device_mesh, _behind(first), run_check=False, shape=shape, stride=_strides(shape)
    ).full_tensor()


def scatter_(column: list[Any], whole: Tensor) -> None:
    """Copy a stack (k, ...) that every process holds into its tensors; sharded ones take their own part of it."""
    if placements(column[0]) is None:
        torch._foreach_copy_(column, list(whole.unbind(0)))
        return
    from torch.distributed.tensor import DTensor, Replicate

    first: Any = column[0]
    everywhere = [Replicate()] * len(first.placements)
    spread = DTensor.from_local(whole, first.device_mesh, everywhere, run_check=False)
    parts = spread.redistribute(placements=_behind(first)).to_local().unbind(0)
    torch._foreach_copy_([t.to_local() for t in column], list(parts))


def _behind(tensor: Any) -> list[object]:
    """How a stack of such tensors is placed: sharded along the same axis, which is now one further back."""
    from torch.distributed.tensor import Shard

    return [Shard(p.dim + 1) if isinstance(p, Shard) else p for p in tensor.placements]


def _strides(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()
