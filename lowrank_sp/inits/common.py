"""What every initialization shares: checks, random numbers in the library of the data, and scale matching."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..factors import Factors
from ..problems.base import LeastSquares
from ..problems.checks import check_rank

__all__ = ["check_init", "fit_scale", "normal", "place", "reach"]


def check_init(problem: Any, form: Any, rank: Any) -> int:
    """The validated rank; errors name the argument that is off."""
    if not isinstance(problem, LeastSquares):
        raise TypeError(f"problem must be a problem such as lr.MatrixCompletion(...), got {type(problem).__name__}")
    if not (isinstance(form, type) and issubclass(form, Factors)):
        raise TypeError(f"form must be a parameterization such as lr.BurerMonteiro, got {form!r}")
    return check_rank(rank, problem.shape)


def normal(problem: LeastSquares, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Standard normal numbers (complex where the data are) beside the data of the problem."""
    like = problem.like()
    z = rng.standard_normal(shape)
    if like.dtype.is_complex if xp.is_torch(like) else like.dtype.kind == "c":
        z = (z + 1j * rng.standard_normal(shape)) / 2**0.5
    return xp.asarray_like(z, like)


def reach(form: Any, shape: tuple[int, int], rank: int) -> int:
    """The largest rank of the matrices of a form at a size."""
    return form(*[np.empty(core) for core in form.shapes(shape, rank)]).rank


def place(problem: LeastSquares, point: Factors) -> Factors:
    """A NumPy point moved beside the data of the problem."""
    return point.map(lambda a: xp.asarray_like(a, problem.like()))


def fit_scale(problem: LeastSquares, left: Any, right: Any) -> Any:
    """The number c, at least zero, for which ``c A(left right^H)`` fits the data best."""
    from ..parameterizations import BurerMonteiro

    return problem.amplitude(problem.measure((BurerMonteiro(left, right),))[0])
