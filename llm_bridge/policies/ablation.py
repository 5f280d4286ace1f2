"""Ranks that move between layers: components that a score does not miss are removed, and others get room instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from ..adapter import Adapter
from ..inject import check_name, install, known
from ..life import require_unmerged
from ..restore import sites_at
from .base import gated

__all__ = ["ablation", "reallocated"]


@covers("R16")
@torch.no_grad()
def ablation(model: nn.Module, score: Callable[[], float], name: str = "default") -> dict[str, Tensor]:
    """What every component does for a score: ``S(M) - S(M without it) + S(M with it alone)``, by path (r,).

    Parameters
    ----------
    model : Module
        With an active adapter of the form DiagonalCore, whose gates are the components' switches.
    score : callable () -> float
        The larger the better, such as an accuracy on held-out data. Called with the model in evaluation mode and
        without gradients, twice for every component.
    name : str
        Of the adapter.

    Raises
    ------
    ValueError, TypeError
        If there is no such adapter or its form has no gates, or a score is not finite. Gates and modes are then as
        they were.

    Notes
    -----
    Alone is a component when all others of the whole model are off.
    Source: :cite:`liu2024alora`; equation (50) of :cite:`he2026unified`.
    """
    gates = {path: adapter.values for path, adapter in gated(model, name).items()}
    found = {}
    with _restored(model, gates):
        kept = {path: values.clone() for path, values in gates.items()}
        whole = _finite(score())
        for path, values in gates.items():
            found[path] = torch.zeros(len(values), dtype=torch.float64)
            for i in range(len(values)):
                values[i] = 0
                without = _finite(score())
                for other in gates.values():
                    other.zero_()
                values[i] = kept[path][i]
                found[path][i] = whole - without + _finite(score())
                for other, old in kept.items():
                    gates[other].copy_(old)
    return found


@contextmanager
def _restored(model: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Evaluation mode; gates and modes come back, also after an error."""
    modes, kept = [(m, m.training) for m in model.modules()], {path: v.clone() for path, v in gates.items()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for path, values in gates.items():
            values.copy_(kept[path])


def _finite(score: float) -> float:
    if not np.isfinite(score):
        raise ValueError(f"the score must be finite, got {score}")
    return float(score)


@covers("R16")
@torch.no_grad()
def reallocated(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    count: int,
    name: str = "default",
    new: str | None = None,
    seed: int = 0,
) -> str:
    """Add an adapter without the ``count`` components of least score and with as many new ones; returns its name.

    New components go to the layers that lose none, in turn, those with the best mean score first (to all, if all lose
    some). They start at zero, with a random right factor; the components that stay keep their values and their scale.
    The new adapter is the only active one; make its optimizer afterwards.

    Parameters
    ----------
    model : Module
    scores : mapping of str to Tensor (r,)
        By path, such as `ablation` gives.
    count : int
        Every layer keeps a component at least.
    name : str
        Of an active adapter of the form DiagonalCore.
    new : str, optional
        By default ``<name>-reallocated``.
    seed : int

    Raises
    ------
    ValueError, TypeError
        If there is no such adapter or its form has no gates, a score is missing, there are not so many components to
        remove, or no room for new ones.
    """
    adapters, setup = gated(model, name), known(model, name)
    new = f"{name}-reallocated" if new is None else new
    check_name(model, new)
    require_unmerged(model)
    if {p: len(a.values) for p, a in adapters.items()} != {p: len(s) for p, s in scores.items()}:
        raise ValueError(f"scores must have one number for every component of {', '.join(list(adapters)[:3])}, ...")
    stays = _best(scores, count)
    more = _shares(adapters, scores, stays, count)
    rng = np.random.default_rng(seed)
    made = {path: _changed(adapter, stays[path], more[path], rng) for path, adapter in adapters.items()}
    ranks = setup.ranks | {path: len(adapter.values) for path, adapter in made.items()}
    rest = {"ranks": ranks, "also_train": (), "originals": {}, "tuned": {}}
    install(model, new, replace(setup, **rest), sites_at(model, adapters, "the model"), made)
    return new


def _best(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """By path, which components (r,) stay: all but the ``count`` worst, and the best of every layer."""
    stays = {path: torch.ones(len(s), dtype=torch.bool) for path, s in scores.items()}
    free = [(float(s[i]), path, i) for path, s in scores.items() for i in range(len(s)) if i != int(s.argmax())]
    if not 1 <= count <= len(free):
        raise ValueError(f"count must lie between 1 and {len(free)}, so that every layer keeps one, got {count}")
    for _, path, i in sorted(free)[:count]:
        stays[path][i] = False
    return stays


def _shares(
    adapters: Mapping[str, Adapter], scores: Mapping[str, Tensor], stays: Mapping[str, Tensor], count: int
) -> dict[str, int]:
    """By path, how many new components a layer gets."""
    order = sorted(scores, key=lambda path: -float(scores[path].mean()))
    whole = [path for path in order if bool(stays[path].all())] or order
    room = {path: min(adapters[path].point().shape) - int(stays[path].sum()) for path in whole}
    more = dict.fromkeys(adapters, 0)
    while sum(more.values()) < count:
        open_ = [path for path in whole if more[path] < room[path]]
        if not open_:
            raise ValueError(f"there is room for {sum(more.values())} new components only; move fewer than {count}")
        for path in open_[: count - sum(more.values())]:
            more[path] += 1
    return more


def _changed(adapter: Adapter, stays: Tensor, more: int, rng: np.random.Generator) -> Adapter:
    """The adapter without some components and with new ones that vanish."""
    index = stays.nonzero()[:, 0].to(adapter.values.device)
    left, values, right = (getattr(adapter, name)[..., index] for name in ("left", "values", "right"))
    bound = len(right) ** -0.5
    drawn = torch.as_tensor(rng.uniform(-bound, bound, (len(right), more)), dtype=right.dtype, device=right.device)
    point = adapter.form(
        torch.cat((left, left.new_zeros(len(left), more)), 1),
        torch.cat((values, values.new_ones(more))),
        torch.cat((right, drawn), 1),
    )
    return Adapter(point, adapter.scale, adapter.combine, adapter.noise, adapter.trains)
