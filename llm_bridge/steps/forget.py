"""Letting an optimizer forget what it has accumulated for some adapters, all of it or the smaller part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lowrank_sp.factors import Factors

from ..adapter import Adapter
from ..bucket import Bucket
from ..optimizer import LowRankOptimizer

__all__ = ["forget"]


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer, adapters: Iterable[Adapter], share: float = 1.0) -> None:
    """Set what an optimizer has accumulated for adapters to zero.

    Parameters
    ----------
    optimizer : Optimizer
        Ours, or any of torch.
    adapters : iterable of Adapter
    share : float
        In (0, 1]. At 1 everything is forgotten, counters of steps included. Below, in every array of every layer the
        entries up to this quantile of the absolute first moments: ReLoRA's pruning by magnitude; counters go on.

    Raises
    ------
    ValueError
        If the share is out of range.

    Notes
    -----
    First and second moments lose the same entries. The published code prunes them one by one: a first moment that
    stays without its second one, where the gradient is zero after a restart, is divided by Adam's epsilon, and the
    step is larger by orders of magnitude. Orthonormal factors forget everything but their counters: first moments are
    tangent vectors at the point that was left, and to carry the pruned ones to another point would fill the entries
    whose second moments are zero. Source: :cite:`lialin2024relora`.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    chosen = list(adapters)
    for parameter in {id(p): p for adapter in chosen for p in adapter.parameters()}.values():
        if share == 1:
            optimizer.state.pop(parameter, None)
        else:
            kept = optimizer.state.get(parameter, {}).values()
            _prune([array for array in kept if isinstance(array, Tensor) and array.shape == parameter.shape], share)
    if isinstance(optimizer, LowRankOptimizer):
        known = {id(adapter) for adapter in chosen}
        optimizer.buckets = [part for bucket in optimizer.buckets for part in _forgotten(bucket, known, share)]


def _forgotten(bucket: Bucket, known: set[int], share: float) -> list[Bucket]:
    """The bucket, apart where only some of its adapters forget their counters."""
    hit = [i for i, adapter in enumerate(bucket.adapters) if id(adapter) in known]
    if not hit or all(state is None for state in bucket.states):
        return [bucket]
    if share < 1:
        for state in bucket.states:
            for space, *same in zip(bucket.form.spaces, *(part.arrays() for part in _factors(state)), strict=True):
                for i in hit:
                    _prune([array[i] for array in same], share if space.linear else 1.0)
        return [bucket]
    rest = [i for i in range(len(bucket.adapters)) if i not in hit]
    fresh = Bucket([bucket.adapters[i] for i in hit], bucket.rule, bucket.move, bucket.blocks, bucket.group)
    return [fresh, bucket.part(rest)] if rest else [fresh]


def _factors(state: Any) -> Iterator[Factors]:
    """What a state accumulates for every array of the form, in order."""
    if isinstance(state, Factors):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from _factors(part)


def _prune(arrays: list[Any], share: float) -> None:
    """Zero all arrays where the first is not above the quantile of its absolute values, in place."""
    if not arrays:
        return
    size = arrays[0].abs()
    kept = size > size.flatten().kthvalue(int(share * (size.numel() - 1)) + 1).values
    for array in arrays:
        array *= kept
