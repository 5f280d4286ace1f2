"""Ranks for the layers of a model before training: from gradients or from activations on calibration batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from lowrank_sp.coverage import covers
from lowrank_sp.metrics import effective_rank

from .calibrate import gradients_of, importance, variance_shares
from .sites import Targets, find_sites

__all__ = ["ranks_by_effective_rank", "ranks_by_importance", "ranks_by_variance"]


@covers("R17")
def ranks_by_importance(
    model: nn.Module,
    calibration: Any,
    rank: int = 8,
    least: int = 4,
    most: int = 32,
    targets: Targets = "all-linear",
    exclude: Targets = (),
    progress: bool = True,
) -> dict[str, int]:
    """Ranks of GoRA by path, for ``adapt(model, ..., targets=list(ranks), rank_pattern=ranks)``.

    With the `importance` ``I_i`` of a layer, ``r_i = round(B (I_i / sum_j I_j) / sqrt(out_i + in_i))``, cut to
    ``[least, most]`` and to the sides of the layer, with the budget ``B = sum_i rank sqrt(out_i + in_i)``.

    Parameters
    ----------
    model, calibration, progress
        As for `collect`.
    rank : int
        What all layers would have with equal importance and shape.
    least, most : int
    targets, exclude
        As for `find_sites`.

    Raises
    ------
    ValueError
        If the numbers are out of order, or all importances vanish.

    Notes
    -----
    Equation (52) of the survey counts ``(out + in) rank`` but divides by the root in (53), which fits no budget; the
    published code takes the root in both. Source: :cite:`he2025gora`; equations (51)-(53) of :cite:`he2026unified`.
    """
    if not 1 <= least <= rank <= most:
        raise ValueError(f"needs 1 <= least <= rank <= most, got {least}, {rank} and {most}")
    scores = importance(model, calibration, targets, exclude, progress)
    shapes = {site.name: site.shape for site in find_sites(model, targets, exclude)}
    total, sizes = sum(scores.values()), {path: sum(shape) ** 0.5 for path, shape in shapes.items()}
    if not total > 0:
        raise ValueError("the importance of all layers is zero: the loss does not depend on them")
    budget = rank * sum(sizes.values())
    found = {path: round(budget * scores[path] / total / sizes[path]) for path in shapes}
    return {path: min(max(r, least), most, *shapes[path]) for path, r in found.items()}


@covers("R19")
def ranks_by_variance(
    model: nn.Module,
    calibration: Any,
    rank: int = 8,
    most: int | None = None,
    targets: Targets = "all-linear",
    exclude: Targets = (),
    progress: bool = True,
) -> dict[str, int]:
    """Ranks of EVA by path, for ``adapt(model, "eva", targets=list(ranks), rank_pattern=ranks, ...)``.

    Of all directions of the inputs of all layers, those that explain the largest shares of the variance of their own
    layer's inputs get a component each, ``rank`` times the number of layers in total. Layers without one are left
    out.

    Parameters
    ----------
    model, calibration, progress
        As for `collect`.
    rank : int
        The mean of the ranks.
    most : int, optional
        By default twice the rank.
    targets, exclude
        As for `find_sites`.

    Raises
    ------
    ValueError
        If the numbers are out of order.

    Notes
    -----
    The ratio printed in the survey divides squares by a sum of singular values; this is the share of the variance, as
    in published code. Second moments are not centred.
    Source: :cite:`paischer2024eva`; equation (55) of :cite:`he2026unified`.
    """
    most = 2 * rank if most is None else most
    if not 1 <= rank <= most:
        raise ValueError(f"needs 1 <= rank <= most, got {rank} and {most}")
    sites = find_sites(model, targets, exclude)
    found = variance_shares(model, sites, calibration, most, progress)
    shares = {site.name: found[site.name][: min(most, *site.shape)].tolist() for site in sites}
    entries = [(share, path) for path, all_of_it in shares.items() for share in all_of_it]
    chosen = [path for _, path in sorted(entries, reverse=True)[: rank * len(sites)]]
    return {path: chosen.count(path) for path in shares if path in chosen}


@covers("R18")
def ranks_by_effective_rank(
    model: nn.Module,
    calibration: Any,
    rank: int | Mapping[str, int] = 8,
    most: int = 64,
    targets: Targets = "all-linear",
    exclude: Targets = (),
    progress: bool = True,
) -> dict[str, int]:
    """Ranks of RaLoRA by path, for ``adapt(model, "ralora", targets=list(ranks), rank_pattern=ranks)``.

    A layer gets as many blocks of rank ``r`` on the diagonal as bring the rank up to the effective rank of its
    gradient: ``2^k r`` with the largest ``2^k <= erank(G) / r`` that divides both sides of the layer. ``erank`` is the
    exponential of the entropy of the normalized singular values.

    Parameters
    ----------
    model, calibration, progress
        As for `collect`.
    rank : int, or mapping of str to int
        Of a block; by path for RaLoRA-Pro, such as `ranks_by_importance` gives.
    most : int
        Blocks of a layer.
    targets, exclude
        As for `find_sites`; with a mapping, its layers.

    Raises
    ------
    ValueError
        If a number is not positive, or a gradient vanishes.

    Notes
    -----
    Of gradients that are too many to be held as they are, the effective rank is that of a sketch.
    Source: :cite:`ye2026ralora`; equation (54) of :cite:`he2026unified`.
    """
    sites = find_sites(model, list(rank) if isinstance(rank, Mapping) else targets, exclude)
    sizes = {site.name: rank[site.name] if isinstance(rank, Mapping) else rank for site in sites}
    if min(most, *sizes.values()) < 1:
        raise ValueError(f"ranks and most must be positive, got {rank} and {most}")
    found = {}
    for path, gradient, shape in gradients_of(model, sites, calibration, progress):
        reached = float(effective_rank(gradient))
        if not 0 < reached < np.inf:
            raise ValueError(f"the gradient of {path} is zero: the loss does not depend on it")
        size = sizes[path]
        found[path] = _blocks(shape, size, min(reached / size, most)) * size
    return found


def _blocks(shape: tuple[int, int], size: int, most: float) -> int:
    """The largest power of two up to ``most`` whose blocks divide the shape and can have the rank ``size``."""
    count = 1
    while 2 * count <= most and not any(n % (2 * count) or n // (2 * count) < size for n in shape):
        count *= 2
    return count
