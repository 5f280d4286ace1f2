"""Data-free starts: small Gaussian factors and random orthonormal factors."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..spaces import FLAT
from .common import check_init, normal, place

__all__ = ["gaussian", "stiefel"]


@covers("I14")
def gaussian(problem: Any, form: Any, rank: int, scale: float = 0.1, seed: Any = None, batch: int | None = None) -> Any:
    """Every unconstrained array has independent N(0, scale^2) entries; orthonormal ones are random.

    Parameters
    ----------
    problem : LeastSquares
        Gives the shape, library, device and floating type.
    form : type[Factors]
    rank : int
        May exceed the rank of the truth (over-parameterized starts).
    scale : float
        Positive. Undamped simultaneous ScaledGD needs a moderate one (0.1), never a tiny one.
    seed : int or Generator, optional
    batch : int, optional
        Number of independent starts on a leading axis.

    Raises
    ------
    ValueError, TypeError
        When rank, scale or form do not fit.
    """
    rank = check_init(problem, form, rank)
    if not (scale > 0 and np.isfinite(scale)):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    rng = np.random.default_rng(seed)
    lead = () if batch is None else (int(batch),)
    arrays = []
    for space, core in zip(form.spaces, form.shapes(problem.shape, rank), strict=True):
        z = normal(problem, (*lead, *core), rng)
        arrays.append(scale * z if space is FLAT else xp.polar(z))
    return form(*arrays)


@covers("I28")
def stiefel(problem: Any, form: Any, rank: int, seed: Any = None) -> Any:
    """Random orthonormal factors and a zero core, as PoLAR starts; a zero right factor where there is no core.

    Which arrays vanish the form says (``zeros``): the product is zero, so the solver begins at ``W = 0``.
    Source: :cite:`lion2025polar`.
    """
    rank = check_init(problem, form, rank)
    point = place(problem, form.random(problem.shape, rank, np.random.default_rng(seed)))
    parts = zip(form.names, form.ndims, point.arrays(), strict=True)
    return form(*[0 * a if name in form.zeros else xp.polar(a) if k > 1 else a for name, k, a in parts])
