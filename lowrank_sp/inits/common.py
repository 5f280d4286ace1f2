"""What every initialization shares: checks, random numbers in the library of the data, and scale matching."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import indexing, xp
from ..factors import Factors
from ..parameterizations.tensor import TensorFactors
from ..problems.base import LeastSquares
from ..problems.checks import check_rank

__all__ = ["beside", "check_init", "fit_scale", "normal", "place", "reach"]


def check_init(problem: Any, form: Any, rank: Any) -> Any:
    """The validated rank; errors name the argument that is off."""
    if not isinstance(problem, LeastSquares):
        raise TypeError(f"problem must be a problem such as lr.MatrixCompletion(...), got {type(problem).__name__}")
    if not (isinstance(form, type) and issubclass(form, Factors)):
        raise TypeError(f"form must be a parameterization such as lr.BurerMonteiro, got {form!r}")
    if issubclass(form, TensorFactors):
        form.shapes(problem.shape, rank)
        return rank
    if len(problem.shape) != 2:
        raise TypeError(
            f"a problem of shape {problem.shape} needs a tensor form such as lr.Tucker, got {form.__name__}"
        )
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
    form = form.for_shape(shape)
    return form(*[np.empty(core) for core in form.shapes(shape, rank)]).rank


def place(problem: LeastSquares, point: Factors) -> Factors:
    """A NumPy point moved beside the data of the problem."""
    return point.map(lambda a: beside(problem, a))


def beside(problem: LeastSquares, array: np.ndarray) -> Any:
    """A NumPy array in the library and on the device of the data, and of their type unless it holds integers."""
    like = problem.like()
    return indexing.beside(array, like) if array.dtype.kind == "i" else xp.asarray_like(array, like)


def fit_scale(problem: LeastSquares, left: Any, right: Any) -> Any:
    """The number c, at least zero, for which ``c A(left right^H)`` fits the data best."""
    from ..parameterizations import BurerMonteiro

    return problem.amplitude(problem.measure((BurerMonteiro(left, right),))[0])
