"""Alternating directions (ADMM) for the nuclear norm plus a data term, with balanced residuals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from .. import xp
from ..coverage import covers
from ..descent import Solver, State
from ..parameterizations import SVD
from ..problems import RobustPCA
from ..problems.base import LeastSquares
from .common import SPARE, Sum, begin, combine, frobenius, leading, shrink, soften

__all__ = ["ADMM", "Absolute", "AlternatingDirections", "DataTerm", "RobustADMM", "Squares"]

Array = Any

# Residuals further apart than the first factor move the penalty by the second one.
APART, FACTOR = 5.0, 2.0
# The first threshold of singular values, relative to the largest one of A^* y.
FIRST = 0.1


class DataTerm(ABC):
    """A convex function g of the measurements z, through its proximal map."""

    @abstractmethod
    def begin(self, problem: LeastSquares, point: Any, name: str) -> SVD:
        """The start as singular triplets, if the problem has this term."""

    @abstractmethod
    def proximal(self, problem: LeastSquares, unit: float, values: Array, penalty: float) -> Array:
        """``argmin_z g(z) + penalty / 2 ||z - values||^2``; ``unit`` is the largest singular value of ``A^* y``."""


@dataclass(frozen=True)
class Squares(DataTerm):
    """``||z - y||^2 / (2 weight)``, the weight relative to the largest singular value of ``A^* y``; 0: ``z = y``."""

    weight: float = 0.0

    def __post_init__(self):
        if not self.weight >= 0:
            raise ValueError(f"weight must not be negative, got {self.weight}")

    def begin(self, problem, point, name):
        return begin(problem, point, name)

    def proximal(self, problem, unit, values, penalty):
        share = self.weight * unit * penalty
        return (problem.data + share * values) / (1 + share)


@dataclass(frozen=True)
class Absolute(DataTerm):
    """``weight ||z - y||_1`` over the known entries of a `RobustPCA`; ``1 / sqrt(share known * max(m, n))``."""

    weight: float | None = None

    def __post_init__(self):
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"weight must be positive, got {self.weight}")

    def begin(self, problem, point, name):
        if not isinstance(problem, RobustPCA):
            raise TypeError(f"{name} needs a RobustPCA problem, not {type(problem).__name__}")
        if point.batch_shape:
            raise ValueError(f"{name} runs one problem at a time, got a batch of {point.batch_shape}")
        return point.to(SVD)

    def proximal(self, problem: Any, unit, values, penalty):
        weight = problem.pursuit_weight() if self.weight is None else self.weight
        return problem.data + soften(values - problem.data, weight / penalty)


class _Memory(NamedTuple):
    image: Array
    """A(W)."""
    split: Array
    """z."""
    dual: Array
    """The multiplier of A(W) = z over the penalty."""
    penalty: float
    curvature: float
    """At least ``||A||^2`` along all moves so far."""
    count: int
    unit: float
    """The largest singular value of ``A^* y``."""
    scale: float
    """The gradient of the data alone: the unit in which `solve` reads residuals."""


@dataclass(frozen=True)
class AlternatingDirections(Solver):
    """``min ||W||_* + g(z)`` with ``A(W) = z``: singular values shrunk, a proximal map of g, a multiplier step.

    ``W <- D_(1 / (penalty c))(W - A^*(A(W) - z + u) / c)``, the quadratic term of W linearized with ``c >= ||A||^2``:
    1 for completion and robust PCA, where nothing is lost by it; elsewhere 1 at first and doubled until it bounds
    the move. Then ``z <- prox(A(W) + u)`` and ``u <- u + A(W) - z``. No matrix but the measurements is stored.

    Parameters
    ----------
    term : DataTerm
        g.
    rank : int, optional
        Most singular values computed; min(m, n) by default.
    penalty : float, optional
        Of the constraint, at first; its inverse is the threshold of the singular values.
    balance : int
        Iterations during which the penalty may change. After them it is constant, so that the iteration converges.

    Notes
    -----
    The recorded gradient norm is that of the relative primal residual ``A(W) - z`` and of a bound on the relative dual
    residual, in units of the gradient of the data. The penalty is doubled or halved when one of them is five
    times the other. Source: :cite:`boyd2011admm`, section 3; :cite:`yang2013linearized` for the linearization;
    :cite:`he2000penalty`, :cite:`wohlberg2017balancing` for the balance of relative residuals.
    """

    term: DataTerm
    rank: int | None = None
    penalty: float | None = None
    balance: int = 200
    name: str = "ADMM"
    form: ClassVar[type] = SVD
    descends: ClassVar[bool] = False

    def __post_init__(self):
        if self.penalty is not None and not self.penalty > 0:
            raise ValueError(f"penalty must be positive, got {self.penalty}")
        if self.balance < 0:
            raise ValueError(f"balance must not be negative, got {self.balance}")
        if self.rank is not None and not self.rank >= 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")

    def start(self, problem, point):
        gradient = point.project(point.pullback(problem.backproject(problem.data))).norm()
        point = self.term.begin(problem, point, self.name)
        image, residual = problem.measure((point,))[0], problem.residual(point)
        width = min(point.rank + SPARE, *problem.shape)
        unit = float(leading(problem.backproject(problem.data), point.right, width, powers=20).values[0])
        penalty = 1 / (FIRST * unit or 1.0) if self.penalty is None else self.penalty
        split = self.term.proximal(problem, unit, image, penalty)
        memory = _Memory(image, split, 0 * split, penalty, 1.0, 0, unit, float(gradient) or 1.0)
        return State(point, residual, problem.loss(residual), None, memory)

    def step(self, problem, state):
        point, memory = state.point, state.memory
        new, image, curvature = self._shrunk(problem, point, memory)
        shifted = image + memory.dual
        split = self.term.proximal(problem, memory.unit, shifted, memory.penalty)
        move = frobenius(combine((1.0, new), (-1.0, point)))
        dual = memory.penalty * (curvature * move + curvature**0.5 * _norm(problem, split - memory.split))
        dual = dual / max(1.0, float((new.values > 0).sum())) ** 0.5  # the multiplier has singular values 1 there
        primal = _norm(problem, image - split) / (max(_norm(problem, image), _norm(problem, split)) or 1.0)
        memory = memory._replace(
            image=image, split=split, dual=shifted - split, curvature=curvature, count=memory.count + 1
        )
        residual = problem.residual(new)
        norm = memory.scale * (primal**2 + dual**2) ** 0.5
        return State(new, residual, problem.loss(residual), norm, self._balanced(memory, primal, dual))

    def _shrunk(self, problem, point, memory) -> tuple[SVD, Array, float]:
        """The next W with its measurements, and the curvature that bounds the move."""
        most = min(problem.shape) if self.rank is None else min(self.rank, *problem.shape)
        width = min(most, int((point.values > 0).sum()) + SPARE)
        gradient = problem.backproject(memory.image - memory.split + memory.dual)
        curvature = memory.curvature
        while True:
            terms = (1.0, combine((1.0, point))), (-1 / curvature, gradient)
            new = shrink(leading(Sum(*terms), point.right, width, seed=memory.count), 1 / (memory.penalty * curvature))
            image = problem.measure((new,))[0]
            if problem.nonexpansive or curvature > 1e12:
                return new, image, curvature
            move = frobenius(combine((1.0, new), (-1.0, point)))
            slack = 1e3 * xp.eps(problem.like()) * _norm(problem, image)  # differences of equal images are rounding
            if _norm(problem, image - memory.image) <= curvature**0.5 * move + slack:
                return new, image, curvature
            curvature = 2 * curvature

    def _balanced(self, memory: _Memory, primal: float, dual: float) -> _Memory:
        """The penalty moved towards equal residuals; the multiplier itself stays."""
        if memory.count > self.balance or not (primal > APART * dual or dual > APART * primal):
            return memory
        factor = FACTOR if primal > dual else 1 / FACTOR
        return memory._replace(penalty=memory.penalty * factor, dual=memory.dual / factor)


def _norm(problem: LeastSquares, values: Array) -> float:
    return float(xp.to_numpy(problem.inner(values, values))) ** 0.5


@covers("O18", "O19", "S04")
def ADMM(weight: float = 0.0, rank: int | None = None, penalty: float | None = None) -> AlternatingDirections:
    """``min ||W||_*`` subject to ``A(W) = y``, or ``||W||_* + ||A(W) - y||^2 / (2 weight)``; needs no rank.

    For completion, sensing and factorization. The recorded loss is that of the problem, which a positive weight does
    not minimise.

    Parameters
    ----------
    weight : float
        Relative to the largest singular value of ``A^* y``, at which the solution is zero; 0 for exact data.
    rank : int, optional
        Most singular values computed; ``min(m, n)`` by default.
    penalty : float, optional
        Of the constraint, at first; it adapts.

    Notes
    -----
    Source: :cite:`boyd2011admm`; :cite:`yang2013linearized`.
    """
    return AlternatingDirections(Squares(weight), rank, penalty)


@covers("O18", "O19", "S05")
def RobustADMM(
    weight: float | None = None, rank: int | None = None, penalty: float | None = None
) -> AlternatingDirections:
    """``min ||W||_* + weight ||W - A||_1`` over the known entries of a `RobustPCA`.

    The program of `PCP`, which needs no rank and no share of outliers, with a penalty that adapts. The
    recorded loss is that of the problem, which this does not minimise.

    Parameters
    ----------
    weight : float, optional
        ``1 / sqrt(p max(m, n))`` by default, p the share of known entries.
    rank : int, optional
        Most singular values computed; ``min(m, n)`` by default.
    penalty : float, optional
        Of the constraint, at first.

    Notes
    -----
    Source: :cite:`candes2011rpca`; :cite:`boyd2011admm`.
    """
    return AlternatingDirections(Absolute(weight), rank, penalty, name="RobustADMM")
