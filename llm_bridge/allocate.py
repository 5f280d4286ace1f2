"""Ranks for the layers of a model before training: from gradients or from activations on calibration batches."""

from __future__ import annotations

from typing import Any

from torch import nn

from lowrank_sp.coverage import covers

from .calibrate import importance, variance_shares
from .sites import Targets, find_sites

__all__ = ["ranks_by_importance", "ranks_by_variance"]


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
