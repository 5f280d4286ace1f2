"""Methods that project on the matrices of rank r after every gradient step: SVP and normalized IHT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import xp
from ..descent import Solver, State
from ..parameterizations import SVD, BurerMonteiro
from .common import SPARE, Sum, begin, combine, frobenius, leading

__all__ = ["NIHT", "SVP", "HardThresholding"]


@dataclass(frozen=True)
class HardThresholding(Solver):
    """``W <- P_r(W - step grad f(W))`` with P_r the best approximation of the rank of the start.

    Parameters
    ----------
    step_size : float, optional
        None normalizes: the exact minimiser along the gradient projected on the column space of W.
    """

    step_size: float | None = None
    name: str = "NIHT"
    form: ClassVar[type] = SVD

    def __post_init__(self):
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive, got {self.step_size}")

    def start(self, problem, point):
        point = begin(problem, point, self.name)
        residual = problem.residual(point)
        return State(point, residual, problem.loss(residual), None, ())

    def step(self, problem, state):
        point, r = state.point, state.point.rank
        gradient = problem.backproject(state.residual)
        size = self._normalized(problem, point, gradient) if self.step_size is None else self.step_size
        terms = (1.0, combine((1.0, point))), (-size, gradient)
        width = min(r + SPARE, *problem.shape)
        wide = leading(Sum(*terms), point.right, width, powers=2)
        new = SVD(wide.left[:, :r], wide.values[:r], wide.right[:, :r])
        residual = problem.residual(new)
        norm = frobenius(combine((1.0, new), (-1.0, point))) / size
        return State(new, residual, problem.loss(residual), norm, ())

    def _normalized(self, problem, point, gradient) -> float:
        projected = BurerMonteiro(point.left, xp.adjoint(gradient) @ point.left)
        image = problem.measure((projected,))[0]
        curvature = float(problem.inner(image, image))
        return float(xp.inner(projected.right, projected.right)) / curvature if curvature > 0 else 1.0


def SVP(step_size: float = 1.0) -> HardThresholding:
    """Singular value projection: gradient steps of constant length, projected on rank r.

    Parameters
    ----------
    step_size : float
        For completion ``1 / problem.observed`` or less; needs measurements close to an isometry, and diverges
        on sparse samples.

    Notes
    -----
    Source: :cite:`jain2010svp`.
    """
    return HardThresholding(float(step_size), "SVP")


def NIHT() -> HardThresholding:
    """Normalized iterative hard thresholding: `SVP` with the best step of the current column space.

    Source: :cite:`tanner2013niht`.
    """
    return HardThresholding(None, "NIHT")
