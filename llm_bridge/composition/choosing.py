"""One of two adapters for every layer: the one with more weight in its largest entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from ..adapter import Adapted
from ..combination import check_names
from ..inject import adapted, known

__all__ = ["layerwise_choice"]


@covers("A17")
@torch.no_grad()
def layerwise_choice(
    model: nn.Module, names: Sequence[str], count: int | None = None, strength: float = 1.0
) -> dict[str, list[float]]:
    """Choose one of two adapters for every layer, without training: K-LoRA.

    The first, where the sum of its K largest entries in size is at least ``strength gamma`` times that of the second;
    gamma is the quotient of the sums of all entries in all layers, so that no adapter wins by its scale.

    Parameters
    ----------
    model : Module
    names : sequence of str
        Two additive adapters, as of a subject and a style.
    count : int, optional
        K; by default the product of their ranks in the layer.
    strength : float
        Of the second. In the source it rises linearly in the steps of a diffusion: choose anew for every step.

    Returns
    -------
    dict
        By path ``[1.0, 0.0]`` or ``[0.0, 1.0]``: weights for ``combine(model, names, ...)``.

    Raises
    ------
    ValueError
        If these are not two additive adapters, or count or strength are not positive.

    Notes
    -----
    Reconstructed from the description of the published method. A layer that one of them does not have goes to the
    other. Source: :cite:`ouyang2025klora`.
    """
    check_names(model, names)
    if len(names) != 2:
        raise ValueError(f"names must be two adapters, got {len(names)}")
    if strength <= 0 or (count is not None and count < 1):
        raise ValueError(f"strength and count must be positive, got {strength} and {count}")
    layers = {path: layer for path, layer in adapted(model).items() if set(names) & set(layer.names())}
    ranks = [known(model, name).ranks for name in names]
    tops, sums = {}, torch.zeros(2, dtype=torch.float64)
    for path, layer in layers.items():
        sizes = [_sizes(layer, name) for name in names]
        k = count or ranks[0].get(path, 1) * ranks[1].get(path, 1)
        tops[path] = [float(s.topk(min(k, len(s))).values.sum()) for s in sizes]
        sums += torch.tensor([float(s.sum()) for s in sizes])
    level = strength * float(sums[0] / sums[1]) if sums[1] > 0 else 0.0
    return {path: [1.0, 0.0] if first >= level * second else [0.0, 1.0] for path, (first, second) in tops.items()}


def _sizes(layer: Adapted, name: str) -> Tensor:
    """Absolute values of all entries of what an adapter changes, zero where it is not there."""
    if name not in layer.names():
        return torch.zeros(1, dtype=torch.float64)
    return layer.adapter(name).update().double().abs().flatten().cpu()
