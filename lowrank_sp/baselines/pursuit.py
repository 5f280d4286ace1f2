"""Principal component pursuit: the convex program for low rank plus sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .. import xp
from ..coverage import covers
from ..descent import Solver, State
from ..parameterizations import SVD
from ..problems import RobustCompletion, RobustPCA
from .common import Sum, combine, leading, shrink, soften

__all__ = ["PCP", "Pursuit"]


@dataclass(frozen=True)
class Pursuit(Solver):
    """``min ||L||_* + weight ||S||_1`` with ``L + S = A``, by alternating directions (ADMM).

    The sum of absolute values goes over the known entries.

    Parameters
    ----------
    weight : float, optional
        ``1 / sqrt(p max(m, n))`` by default, p the share of known entries.
    penalty : float, optional
        Of the constraint; ``p m n / (4 ||A||_1)`` by default.
    rank : int, optional
        Most singular values kept, by warm block power iterations; by default all, by a full decomposition.
    """

    weight: float | None = None
    penalty: float | None = None
    rank: int | None = None
    name: str = "PCP"
    form: ClassVar[type] = SVD
    descends: ClassVar[bool] = False

    def __post_init__(self):
        for name, value in (("weight", self.weight), ("penalty", self.penalty)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    def start(self, problem, point):
        if not isinstance(problem, (RobustPCA, RobustCompletion)):
            raise TypeError(f"PCP needs a RobustPCA problem or a RobustCompletion, not {type(problem).__name__}")
        if isinstance(problem, RobustCompletion) and self.rank is None:
            raise ValueError("PCP needs a rank on entries: a full decomposition would form the matrix")
        if point.batch_shape:
            raise ValueError(f"PCP runs one problem at a time, got a batch of {point.batch_shape}")
        residual, point = problem.residual(point), point.to(SVD)
        size = float(abs(problem.data).sum())
        count = problem.observed * problem.shape[0] * problem.shape[1]
        penalty = count / (4 * size or count) if self.penalty is None else self.penalty
        weight = problem.pursuit_weight() if self.weight is None else self.weight
        return State(point, residual, problem.loss(residual), None, (0 * problem.data, penalty, weight))

    def step(self, problem: Any, state):
        multiplier, penalty, weight = state.memory
        gap = problem.leftover(state.point) + multiplier / penalty
        sparse = soften(gap, weight / penalty)
        wide = _leading(_filled(problem, state.point, gap - sparse), state.point, self.rank)
        point = shrink(wide, 1 / penalty)
        gap = problem.leftover(point) - sparse
        residual = problem.residual(point)
        norm = problem.inner(gap, gap) ** 0.5
        return State(point, residual, problem.loss(residual), norm, (multiplier + penalty * gap, penalty, weight))


def _filled(problem: Any, point: SVD, change: Any) -> Any:
    """The iterate, changed where A is known: unknown entries cost nothing and stay."""
    if isinstance(problem, RobustPCA):
        return point.dense() + change
    return Sum((1.0, combine((1.0, point))), (1.0, problem.backproject(change)))


def _leading(matrix: Any, last: SVD, rank: int | None) -> SVD:
    """Leading singular triplets: ``rank`` from those of the last iterate, or all of a dense matrix."""
    if rank is not None:
        return leading(matrix, last.right, min(rank, *last.shape))
    u, s, vh = xp.namespace(matrix).linalg.svd(matrix, full_matrices=False)
    return SVD(u, s, xp.adjoint(vh))


@covers("O19", "S05")
def PCP(weight: float | None = None, penalty: float | None = None, rank: int | None = None) -> Pursuit:
    """Principal component pursuit by ADMM, on a `RobustPCA` or `RobustCompletion`; needs no rank and no share.

    One full singular value decomposition per iteration unless ``rank`` is given; the start gives the first low-rank
    part, and the sparse part is ``problem.data - result.point.dense()``. The recorded loss is that of the problem,
    which this method does not minimise.

    Parameters
    ----------
    weight : float, optional
        ``1 / sqrt(p max(m, n))`` by default, p the share of known entries.
    penalty : float, optional
        Of the constraint; ``p m n / (4 ||A||_1)`` by default.
    rank : int, optional
        Most singular values kept, by warm block power iterations; by default all, by a full decomposition.

    Notes
    -----
    Source: :cite:`candes2011rpca`.
    """
    return Pursuit(weight, penalty, rank)
