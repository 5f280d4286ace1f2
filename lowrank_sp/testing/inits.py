"""The contract of a starting point: shapes, library and type, finite, reproducible, exact where said."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..parameterizations import BurerMonteiro
from ..problems import MatrixFactorization
from .common import fitting_shape, in_library, random_point, require, require_close, settle

__all__ = ["check_init"]


def check_init(
    init: Any,
    form: Any = BurerMonteiro,
    rank: int = 2,
    *,
    library: str = "numpy",
    dtype: Any = "float64",
    batch: tuple[int, ...] = (),
    exact: bool = False,
    seed: int = 0,
    tol: float = 1e-9,
) -> None:
    """Check a starting point ``init(problem, form, rank, seed=...)`` on a small factorization.

    Its arrays have the shapes of the form, the library, device and type of the data, finite values, and lie
    on their spaces; the same seed gives the same start; the problem accepts it, batched data included; and
    with ``exact`` its matrix is the target, whose rank is ``rank``.

    Parameters
    ----------
    init : callable
    form : type[Factors]
    rank : int
    library : {"numpy", "torch"}
    dtype : numpy dtype
    batch : tuple of int
        Leading axes of the data.
    exact : bool
        Whether the start solves a factorization whose target has exactly this rank, or for a form that is not
        universal is a matrix of the form at this size.
    seed : int
    tol : float

    Raises
    ------
    AssertionError
        With the start and the property that does not hold.
    """
    shape = fitting_shape(form, rank)
    source = BurerMonteiro if form.universal else form
    target = random_point(source, shape, rank, np.random.default_rng(seed), dtype, batch).dense()
    problem = MatrixFactorization(in_library(target, library))
    name = f"{getattr(init, '__name__', init)} for {form.__name__}"
    try:
        point = init(problem, form, rank, seed=seed)
    except TypeError as error:
        if form.converts:
            raise
        require(form.__name__ in str(error), f"{name}: the refusal to convert does not name the form: {error}")
        return
    require(type(point) is form.for_shape(shape), f"{name}: returned a {type(point).__name__}")
    _check_arrays(problem, point, form.shapes(shape, rank), batch, name)
    require_close(settle(point), point, f"{name}: every factor lies on its space", tol)
    require_close(init(problem, form, rank, seed=seed), point, f"{name}: the same seed gives the same start", 0.0)
    residual: Any = problem.residual(point)
    require(tuple(residual.shape) == target.shape, f"{name}: the residual has shape {tuple(residual.shape)}")
    if exact:
        require_close(point.dense() + 0 * residual, target, f"{name}: solves the factorization at its exact rank", tol)


def _check_arrays(problem: Any, point: Any, shapes: Any, batch: tuple[int, ...], name: str) -> None:
    like = problem.like()
    for label, array, core in zip(point.names, point.arrays(), shapes, strict=True):
        xp.namespace(array, like)
        same = array.dtype == like.dtype or xp.to_numpy(array).dtype.kind == "i"
        require(same, f"{name}: {label} is {array.dtype}, the data are {like.dtype}")
        got = tuple(array.shape)
        allowed = (tuple(core), (*batch, *core))
        require(got in allowed, f"{name}: {label} has shape {got}, expected {allowed[-1]}")
        require(np.isfinite(xp.to_numpy(array)).all(), f"{name}: {label} holds NaN or infinite values")
