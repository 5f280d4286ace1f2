"""Coefficients of a sum of factors, found with values of a loss alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from ..combination import check_names
from ..inject import Setup, adapted, check_name, drop, known
from ..life import activate, active, require_unmerged
from ..recipe import RECIPES
from ..restore import put, restored, sites_at

__all__ = ["SearchReport", "search_weights"]


@dataclass(frozen=True)
class SearchReport:
    """What a search has found.

    Attributes
    ----------
    weights : tuple of float
        Of the adapters.
    loss : float
        With these weights, without the penalty.
    losses : tuple of float
        Of all evaluations, in order; the first is that of the pretrained model.
    """

    weights: tuple[float, ...]
    loss: float
    losses: tuple[float, ...]


@covers("A15")
@torch.no_grad()
def search_weights(
    model: nn.Module,
    names: Sequence[str],
    loss: Callable[[], Any],
    name: str = "mix",
    evaluations: int = 100,
    bound: float = 1.5,
    penalty: float = 0.05,
) -> SearchReport:
    """Add ``(sum_n w_n B_n)(sum_n w_n A_n)`` with the coefficients of least loss as a new adapter: LoraHub.

    The factors are summed, not the updates, as in the source, so that the new adapter is as large as one of them. The
    search (COBYLA) uses values of the loss only, starts at zero and is the same every time. The new adapter becomes
    the only active one.

    Parameters
    ----------
    model : Module
        In evaluation mode during the search.
    names : sequence of str
        Additive adapters with thin factors of the same ranks; where one has no adapter for a layer it counts as zero.
    loss : callable ``() -> float``
        Runs the model on a few examples.
    name : str
        Of the new adapter.
    evaluations : int
        At most this many, more than the number of adapters by at least two.
    bound : float
        Coefficients lie in ``[-bound, bound]``.
    penalty : float
        ``penalty sum_n |w_n|`` is added to the loss.

    Returns
    -------
    SearchReport

    Raises
    ------
    ValueError, TypeError
        If adapters do not exist, are not additive, thin and of the same ranks, or train parameters of the model in
        full, the name is taken, or a number does not fit. The model is then as it was, and also where ``loss`` fails.

    Notes
    -----
    Source: :cite:`huang2024lorahub`, whose optimizer is another one without gradients.
    """
    check_name(model, name)
    require_unmerged(model)
    check_names(model, names)
    if evaluations < len(names) + 2 or bound <= 0 or penalty < 0:
        raise ValueError(
            f"evaluations must be at least {len(names) + 2} for {len(names)} adapters, bound positive and penalty not "
            f"negative, got {evaluations}, {bound} and {penalty}"
        )
    bank = _bank(model, names)
    before, modes = active(model), [(module, module.training) for module in model.modules()]
    _put(model, name, names, bank)
    try:
        model.eval()
        found = _search(lambda w: _value(model, name, bank, w, loss), len(names), evaluations, bound, penalty)
        _set(model, name, bank, found.weights)
    except BaseException:
        drop(model, name)
        activate(model, *before)
        raise
    finally:
        for module, mode in modes:
            module.training = mode
    return found


def _search(
    value: Callable[[Sequence[float]], float], count: int, evaluations: int, bound: float, penalty: float
) -> SearchReport:
    tried: list[tuple[float, tuple[float, ...], float]] = []  # with the penalty, weights, without it

    def objective(w: np.ndarray) -> float:
        plain = value(w.tolist())
        tried.append((plain + penalty * float(np.abs(w).sum()), tuple(w.tolist()), plain))
        return tried[-1][0]

    start, box = np.zeros(count), [(-bound, bound)] * count
    options = {"maxiter": evaluations, "rhobeg": bound / 3, "tol": 1e-4}
    minimize(objective, start, method="COBYLA", bounds=box, options=options)
    inside = [t for t in tried[:evaluations] if max(map(abs, t[1])) <= bound * (1 + 1e-9)]
    _, weights, plain = min(inside)
    return SearchReport(weights, plain, tuple(t[2] for t in tried))


# the sum of factors -----------------------------------------------------------------------------------------------
Bank = dict[str, tuple[Tensor, Tensor]]  # by path (N, m, r) with the scales, and (N, n, r)


def _bank(model: nn.Module, names: Sequence[str]) -> Bank:
    """The factors of all adapters, stacked."""
    bank = {}
    for name in names:
        if known(model, name).also_train:
            raise ValueError(f"adapter {name!r} also trains parameters of the model, which a search does not mix")
    for path, layer in adapted(model).items():
        own = {i: layer.adapter(n) for i, n in enumerate(names) if n in layer.names()}
        if not own:
            continue
        if not all(adapter.thin for adapter in own.values()):
            raise TypeError(f"{path}: an adapter has no thin factors; export_lora makes a plain LoRA of it")
        products = {i: adapter.product() for i, adapter in own.items()}
        if len({left.shape[1] for left, _ in products.values()}) > 1:
            raise ValueError(f"{path}: the adapters have other ranks, so that their factors have no sum; see combine")
        first = next(iter(products.values()))
        sides = [torch.zeros(len(names), *side.shape, dtype=torch.float32, device=side.device) for side in first]
        for i, (left, right) in products.items():
            sides[0][i], sides[1][i] = own[i].scale * left, right
        bank[path] = (sides[0], sides[1])
    return bank


def _put(model: nn.Module, name: str, names: Sequence[str], bank: Bank) -> None:
    ranks = {path: left.shape[-1] for path, (left, _) in bank.items()}
    setup = Setup(RECIPES["lora"], ranks, {path: float(rank) for path, rank in ranks.items()})
    sites = sites_at(model, bank, "the model")
    zeros = {path: {"left": 0 * left[0], "right": 0 * right[0]} for path, (left, right) in bank.items()}
    put(model, name, setup, sites, {site.name: restored(site, setup, zeros[site.name]) for site in sites})


def _set(model: nn.Module, name: str, bank: Mapping[str, tuple[Tensor, Tensor]], weights: Sequence[float]) -> None:
    layers = adapted(model)
    for path, sides in bank.items():
        adapter: Any = layers[path].adapter(name)
        for array, side in zip((adapter.left, adapter.right), sides, strict=True):
            array.copy_(torch.tensordot(torch.tensor(weights, dtype=side.dtype, device=side.device), side, 1))


def _value(model: nn.Module, name: str, bank: Bank, weights: Sequence[float], loss: Callable[[], Any]) -> float:
    _set(model, name, bank, weights)
    value = float(loss())
    if not np.isfinite(value):
        raise ValueError(f"loss returned {value} for the coefficients {list(weights)}")
    return value
