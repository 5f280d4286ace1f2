"""Data-free starts: small Gaussian factors and random orthonormal factors."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..spaces import FIXED, FLAT
from .common import beside, check_init, normal, place

__all__ = ["gaussian", "stiefel"]


@covers("I14")
def gaussian(problem: Any, form: Any, rank: int, scale: float = 0.1, seed: Any = None, batch: int | None = None) -> Any:
    """Every unconstrained array has independent N(0, scale^2) entries; orthonormal and fixed ones are random.

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

    Returns
    -------
    Factors
        A point of the form.

    Raises
    ------
    ValueError, TypeError
        When rank, scale or form do not fit.

    >>> import lowrank_sp as lr
    >>> problem = lr.synthetic.completion(20, 15, rank=2, seed=0)
    >>> gaussian(problem, lr.BurerMonteiro, rank=3, seed=0, batch=4).left.shape
    (4, 20, 3)
    """
    rank = check_init(problem, form, rank)
    if not (scale > 0 and np.isfinite(scale)):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    rng = np.random.default_rng(seed)
    lead = () if batch is None else (int(batch),)
    form = form.for_shape(problem.shape)
    constants = form.constants(problem.shape, rank, rng, lead)
    arrays = []
    for name, space, core in zip(form.names, form.spaces, form.shapes(problem.shape, rank), strict=True):
        z = beside(problem, constants[name]) if name in constants else normal(problem, (*lead, *core), rng)
        arrays.append(scale * z if space is FLAT else z if space is FIXED else xp.polar(z))
    return form(*arrays)


@covers("I28")
def stiefel(problem: Any, form: Any, rank: int, seed: Any = None) -> Any:
    """Random orthonormal factors and a zero core, as PoLAR starts; a zero right factor where there is no core.

    Which arrays vanish the form says (``zeros``): the product is zero, so the solver begins at ``W = 0``.

    Parameters
    ----------
    problem : LeastSquares
        Gives the data, and with them shape, library, device and floating type.
    form : type[Factors]
    rank : int
        The size that the form counts.
    seed : int or Generator, optional

    Returns
    -------
    Factors
        A point of the form.

    Notes
    -----
    Source: :cite:`lion2025polar`.
    """
    rank = check_init(problem, form, rank)
    point = place(problem, form.random(problem.shape, rank, np.random.default_rng(seed)))
    form = type(point)
    parts = zip(form.names, form.spaces, form.ndims, point.arrays(), strict=True)
    return form(
        *[
            0 * a if name in form.zeros else xp.polar(a) if k > 1 and space is not FIXED else a
            for name, space, k, a in parts
        ]
    )
