"""New adapters made of others: weighted sums, or what another merging makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from .inject import Setup, adapted, base_parameters, check_name, known, setups
from .life import require_size, require_unmerged
from .merging import Merging, Summed
from .recipe import RECIPES
from .restore import put, restored, sites_at
from .truncation import Thin, TruncationReport, check_rank, nearest

__all__ = ["check_names", "combine"]

SUM = Summed()


@torch.no_grad()
@covers("A13", "A18")
def combine(
    model: nn.Module,
    names: Sequence[str],
    weights: Sequence[float] | Mapping[str, Sequence[float]],
    name: str = "mix",
    rank: int | None = None,
    how: Merging = SUM,
) -> TruncationReport:
    """Add a weighted sum of adapters to a model as a new adapter, a plain LoRA, which becomes the only active one.

    The sum is that of the updates, not of the factors: task arithmetic. With thin factors it costs one QR factorization
    of them side by side and the SVD of a small matrix; no matrix of the size of a layer is formed. Parameters that were
    trained in full move by the weighted sum of their changes.

    Parameters
    ----------
    model : Module
    names : sequence of str
        The adapters; they need not have the same layers.
    weights : sequence of float, or mapping of str to such
        One for each, in all layers or by the path of the layer: those of `output_matching` or `layerwise_choice`.
    name : str
        Of the new adapter.
    rank : int, optional
        At most this in every layer: the best approximation. By default the sum of the ranks, which is exact.
    how : Merging
        What takes the place of the sum, such as ``ties()`` or ``dare()``. These form the updates of a layer as
        matrices, and what they make of them has full rank: give a rank.

    Returns
    -------
    TruncationReport
        Ranks, and relative errors in the Frobenius norm, of all layers.

    Raises
    ------
    ValueError
        If an adapter does not exist or is not additive, the number of weights is another one or one is not finite,
        weights by layer lack one, or are given for adapters that train parameters in full, the name is taken, the rank
        is below 1, or adapters are merged. The model is then as it was.
    """
    check_rank(rank)
    check_name(model, name)
    require_unmerged(model)
    check_names(model, names)
    layers = {p: [n for n in names if n in layer.names()] for p, layer in adapted(model).items()}
    paths = [path for path, own in layers.items() if own]
    shares = _shares(model, names, weights, paths)
    sites = sites_at(model, paths, "the model")
    parts = {}
    for site in sites:
        own = layers[site.name]
        adapters = [adapted(model)[site.name].adapter(n) for n in own]
        change = how(adapters, [shares[site.name][n] for n in own], site.name)
        parts[site.name] = nearest(change, rank, site.name)
    tuned = {} if isinstance(weights, Mapping) else _moved(model, dict(zip(names, map(float, weights), strict=True)))
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


def _shares(model: nn.Module, names: Sequence[str], weights: Any, paths: Sequence[str]) -> dict[str, dict[str, float]]:
    """The weights by path and name."""
    if not isinstance(weights, Mapping):
        return dict.fromkeys(paths, _named(names, weights))
    lacking = [path for path in paths if path not in weights]
    if lacking:
        raise ValueError(f"weights by layer must have all layers of the adapters; {lacking[0]} is missing")
    full = [name for name in names if known(model, name).also_train]
    if full:
        raise ValueError(f"adapter {full[0]!r} also trains parameters of the model, for which no layer has a weight")
    return {path: _named(names, weights[path]) for path in paths}


def _named(names: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    if len(weights) != len(names) or not all(isfinite(w) for w in weights):
        raise ValueError(f"weights must be {len(names)} finite numbers, one for each adapter, got {weights!r}")
    return dict(zip(names, map(float, weights), strict=True))


def check_names(model: nn.Module, names: Sequence[str]) -> None:
    """Raise unless these are different adapters of the model that add to the weights."""
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise ValueError(f"names must be a list of different adapters, got {names!r}")
    for name in names:
        made = known(model, name).recipe
        if not made.combine.additive:
            raise ValueError(
                f"adapter {name!r} ({made.name}) does more than add to the weight, so that sums of it mean nothing; "
                "export_lora and load_peft make a plain LoRA of it, which can be combined"
            )
