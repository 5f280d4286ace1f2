"""A quantized base and an adapter that together are close to the weights before."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from .inject import adapt, setups
from .precision import precise
from .quantizers import NormalFloat, Quantizer
from .recipe import Recipe, recipe
from .sites import Site, Targets, find_sites
from .starts.spectrum import dominant_svd

__all__ = ["LoftQReport", "loftq"]


@dataclass(frozen=True)
class LoftQReport:
    """How close a quantized base is to the weights before, by path, relative to their Frobenius norm.

    Attributes
    ----------
    quantized : dict
        Without adapter: ``||W - Q(W)|| / ||W||``.
    adapted : dict
        With it: ``||W - Q - s B A|| / ||W||``.
    """

    quantized: dict[str, float]
    adapted: dict[str, float]

    def __str__(self) -> str:
        width = max(map(len, self.adapted))
        rows = [f"{p:{width}}  {self.quantized[p]:.4f}  {error:.4f}" for p, error in self.adapted.items()]
        return "\n".join([f"{'layer':{width}}  alone   with adapter", *rows])


@covers("I23", "A02")
def loftq(
    model: nn.Module,
    variant: str | Recipe = "lora",
    rank: int = 8,
    quantizer: Quantizer | None = None,
    iterations: int = 5,
    targets: Targets = "all-linear",
    exclude: Targets = (),
    **options: Any,
) -> LoftQReport:
    """Quantize the weights of layers and adapt the model, with factors that make up for the error: LoftQ.

    From ``X = Y = 0`` in turns ``Q = q(W - s X Y^T)`` and ``s X Y^T``, the best approximation of ``W - Q`` of the
    rank. The layers then hold Q in the type that they had. To store it in a few bits is up to libraries for that: a
    quantizer with the same levels and blocks gives Q back. The adapted model starts close to the one before instead of
    exactly there.

    Parameters
    ----------
    model : Module
        With weights that are not quantized yet.
    variant : str or Recipe
        Whose update is one product of two factors or can start as one, added to the weight.
    rank : int
    quantizer : Quantizer, optional
        By default `NormalFloat` with 4 bits in blocks of 64.
    iterations : int
    targets, exclude, **options
        As for `adapt`.

    Returns
    -------
    LoftQReport

    Raises
    ------
    ValueError, TypeError
        If the recipe does not fit, a weight is quantized already, or what `adapt` refuses. The weights are then as they
        were.

    Notes
    -----
    An adapter saved afterwards belongs to this base: save the model too. Source: :cite:`li2023loftq`; equation (23) of
    :cite:`survey2026sp`.
    """
    made, quantizer = recipe(variant), quantizer or NormalFloat()
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations must be a positive integer, got {iterations!r}")
    if not made.combine.additive or not made.mergeable or made.shares or made.init.moves or made.trains is not None:
        raise ValueError(
            f"recipe {made.name!r} cannot start at a given product: it must add an update of its own to every weight, "
            "train all of it and start at zero, such as 'lora'"
        )
    sites = find_sites(model, targets, exclude)
    for site in sites:
        site.kind.stored(site.layer, site.kind.weight(site.layer))  # quantized weights refuse
    for site in {site.shape: site for site in reversed(sites)}.values():
        _check_form(made, site, rank)
    adapt(model, made, rank=rank, targets=targets, exclude=exclude, **options)
    name = options.get("name", "default")
    errors = {site.name: _begin(model, site, name, quantizer, iterations) for site in sites}
    return LoftQReport({p: e[0] for p, e in errors.items()}, {p: e[1] for p, e in errors.items()})


def _check_form(made: Recipe, site: Site, rank: int) -> None:
    """Raise unless the form of a recipe holds any product of the rank at a site, by its effect on one vector."""
    form, size = made.form_for(site.shape, rank), min(max(rank, 1), *site.shape)
    draw = torch.Generator().manual_seed(0)
    left, right, x = (torch.randn(n, k, generator=draw) for n, k in zip((*site.shape, 1), (size, size, site.shape[1])))
    try:
        point = form.from_product(left, right, size)
        shapes = [tuple(array.shape) for array in point.arrays()]
        fits = shapes == [tuple(shape) for shape in form.shapes(site.shape, made.size(site.shape, size))]
        fits = fits and torch.allclose(point.apply(x), x @ right @ left.mT, rtol=1e-3, atol=1e-3)
    except (TypeError, RuntimeError):
        fits = False
    if not fits:
        raise ValueError(
            f"recipe {made.name!r} cannot start at a given product: its form does not hold every matrix of rank {rank} "
            f"at {site.name} {site.shape}; take one that does, such as 'lora'"
        )


@torch.no_grad()
def _begin(model: nn.Module, site: Site, name: str, quantizer: Quantizer, iterations: int) -> tuple[float, float]:
    """Give one layer its quantized weight and its adapter the factors; returns the errors without and with it."""
    layer: Any = model.get_submodule(site.name)
    adapter, stored = layer.adapter(name), site.kind.weight(layer.base)
    weight = precise(stored)
    rank = setups(model)[name].ranks[site.name]
    rng = np.random.default_rng(zlib.crc32(site.name.encode()))
    plain = quantizer(weight)
    base, left, right = alternate(weight, rank, quantizer, iterations, rng)
    point = adapter.form.from_product(left / adapter.scale**0.5, right / adapter.scale**0.5, rank)
    for array, value in zip(point.names, point.arrays(), strict=True):
        getattr(adapter, array).copy_(value)
    layer.kind.replace(layer.base, layer.kind.stored(layer.base, base.to(stored.dtype)))
    size = weight.norm().clamp_min(torch.finfo(weight.dtype).tiny)
    return float((weight - plain).norm() / size), float((weight - base - left @ right.mT).norm() / size)


def alternate(
    weight: Tensor, rank: int, quantizer: Quantizer, iterations: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """``(Q, X, Y)`` after so many turns, with the singular values shared between X and Y."""
    base, product = weight, torch.zeros_like(weight)
    left, right = weight[:, :0], weight[:0].mT
    for _ in range(iterations):
        base = quantizer(weight - product)
        u, s, v = dominant_svd(weight - base, rank, rng)
        left, right = u * s.sqrt(), v * s.sqrt()
        product = left @ right.mT
    return base, left, right
