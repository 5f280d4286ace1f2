"""New adapters as weighted sums of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from .inject import Setup, adapted, base_parameters, check_name, known, setups
from .life import require_size, require_unmerged
from .recipe import RECIPES
from .restore import put, restored, sites_at
from .truncation import Thin, TruncationReport, additive_change, check_rank, nearest

__all__ = ["combine"]


@torch.no_grad()
@covers("A13")
def combine(
    model: nn.Module, names: Sequence[str], weights: Sequence[float], name: str = "mix", rank: int | None = None
) -> TruncationReport:
    """Add a weighted sum of adapters to a model as a new adapter, a plain LoRA, which becomes the only active one.

    The sum is that of the updates, not of the factors. With thin factors it costs one QR factorization of them side
    by side and the SVD of a small matrix; no matrix of the size of a layer is formed. Parameters that were trained in
    full move by the weighted sum of their changes.

    Parameters
    ----------
    model : Module
    names : sequence of str
        The adapters; they need not have the same layers.
    weights : sequence of float
        One for each.
    name : str
        Of the new adapter.
    rank : int, optional
        At most this in every layer: the best approximation. By default the sum of the ranks, which is exact.

    Returns
    -------
    TruncationReport
        Ranks, and relative errors in the Frobenius norm, of all layers.

    Raises
    ------
    ValueError
        If an adapter does not exist or is not additive, the number of weights is another one or one is not finite,
        the name is taken, the rank is below 1, or adapters are merged. The model is then as it was.
    """
    check_rank(rank)
    check_name(model, name)
    require_unmerged(model)
    _check(model, names, weights)
    share = dict(zip(names, map(float, weights), strict=True))
    layers = {p: [n for n in layer.names() if n in share] for p, layer in adapted(model).items()}
    sites = sites_at(model, [p for p, own in layers.items() if own], "the model")
    parts = {}
    for site in sites:
        own = layers[site.name]
        adapters = [adapted(model)[site.name].adapter(n) for n in own]
        parts[site.name] = nearest(additive_change(adapters, [share[n] for n in own]), rank, site.name)
    tuned = _moved(model, share)
    setup = _setup(parts, tuple(tuned))
    new = {s.name: restored(s, setup, {"left": parts[s.name].left, "right": parts[s.name].right}) for s in sites}
    put(model, name, setup, sites, new, tuned)
    return TruncationReport(setup.ranks, {path: thin.error for path, thin in parts.items()})


def _setup(parts: Mapping[str, Thin], also_train: tuple[str, ...]) -> Setup:
    """Plain LoRA with a scale of one."""
    ranks = {path: thin.left.shape[1] for path, thin in parts.items()}
    return Setup(RECIPES["lora"], ranks, {path: float(r) for path, r in ranks.items()}, also_train=also_train)


def _moved(model: nn.Module, share: Mapping[str, float]) -> dict[str, Tensor]:
    """Parameters trained in full: pretrained values plus the weighted sum of their changes."""
    parameters = base_parameters(model)
    moved: dict[str, Tensor] = {}
    for name, weight in share.items():
        setup = setups(model)[name]
        for path in setup.also_train:
            require_size(parameters[path], setup, name, path)
            start = setup.originals[path]
            change = setup.tuned.get(path, parameters[path]) - start
            moved[path] = moved.get(path, start) + weight * change
    return moved


def _check(model: nn.Module, names: Sequence[str], weights: Sequence[float]) -> None:
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise ValueError(f"names must be a list of different adapters, got {names!r}")
    if len(weights) != len(names) or not all(isfinite(w) for w in weights):
        raise ValueError(f"weights must be {len(names)} finite numbers, one for each adapter, got {weights!r}")
    for name in names:
        made = known(model, name).recipe
        if not made.combine.additive:
            raise ValueError(
                f"adapter {name!r} ({made.name}) does more than add to the weight, so that sums of it mean nothing; "
                "export_lora and load_peft make a plain LoRA of it, which can be combined"
            )
