"""Iteratively reweighted least squares for completion: extremely ill-conditioned matrices from few entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from . import xp
from .baselines.common import SPARE, Sum, leading
from .coverage import covers
from .descent import Solver, State
from .operators import SampledMatrix
from .parameterizations import SVD, BurerMonteiro, FixedRank
from .problems import MatrixCompletion

__all__ = ["IterativelyReweighted", "MatrixIRLS"]

Array = Any


class Iterate(NamedTuple):
    """A matrix that meets the data, ``low + backproject(gap)``, with its leading singular triplets."""

    low: BurerMonteiro
    gap: Array  # data less the entries of ``low``, (N,)
    wide: SVD
    epsilon: float
    count: int


@dataclass(frozen=True)
class IterativelyReweighted(Solver):
    """Minimise a smoothed log-determinant over the matrices that meet the data, by weighted least squares.

    With singular values ``s_i`` of the iterate, the objective is ``sum_i log(s_i)`` above a level epsilon and its
    quadratic continuation below. It is touched from above by ``1/2 <Z, H(Z)>``, where H scales the entry (i, j)
    of ``U^H Z V`` by ``1 / (max(s_i, eps) max(s_j, eps))``; the next iterate minimises that bound subject to
    ``Z_ij = a_ij`` on the observed entries, and epsilon falls with the singular value number r + 1.

    Off the tangent space T at the triplets above epsilon, H is the constant ``1 / eps^2``. Eliminating the
    multipliers therefore leaves a system on T alone, of dimension of order (m + n) r,

        ``(eps^2 / (1/H - eps^2) + P_T A^* A P_T) z = P_T A^* y``,

    and the iterate is ``z + A^*(y - A z)``: thin products plus a sparse matrix, never formed. The weights of T
    lie between 0 and about ``eps / s_r``, so the system is as well conditioned as sampling on T is, whatever the
    condition number of the matrix. It is solved by conjugate gradients for the change of z, preconditioned by
    its diagonal for uniform sampling.

    Parameters
    ----------
    accuracy : float
        Relative residual of the inner solves, in the preconditioned norm.
    inner : int
        Most conjugate gradient iterations per step.
    powers : int
        Block power iterations per step, from the last singular vectors.
    """

    accuracy: float = 1e-3
    inner: int = 200
    powers: int = 4
    name: str = "MatrixIRLS"
    form: ClassVar[type] = FixedRank

    def __post_init__(self):
        if not 0 < self.accuracy < 1:
            raise ValueError(f"accuracy must lie in (0, 1), got {self.accuracy}")
        for name in ("inner", "powers"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(f"{name} must be a positive integer, got {getattr(self, name)!r}")

    def start(self, problem, point):
        if not isinstance(problem, MatrixCompletion):
            raise TypeError(f"{self.name} needs a MatrixCompletion problem, not {type(problem).__name__}")
        if point.batch_shape or problem.data.ndim > 1:
            raise ValueError(f"{self.name} runs one problem at a time, got a batch of {point.batch_shape}")
        point = point.to(FixedRank)
        residual = problem.residual(point)
        begin = self._iterate(problem, BurerMonteiro(*point.product()), point.right, point.rank, float("inf"), 0)
        return State(point, residual, problem.loss(residual), None, begin)

    def step(self, problem, state):
        old, rank = state.memory, state.point.rank
        base, weights = _weights(old)
        low = self._solve(problem, base, weights)
        new = self._iterate(problem, low, old.wide.right, rank, old.epsilon, old.count + 1)
        point = _truncated(new.wide, rank)
        residual = problem.residual(point)
        gradient = point.pullback(problem.backproject(residual))
        return State(point, residual, problem.loss(residual), gradient.norm(), new)

    def _iterate(
        self, problem: MatrixCompletion, low: BurerMonteiro, basis: Array, rank: int, epsilon: float, count: int
    ) -> Iterate:
        """The matrix ``low`` with its observed entries replaced by the data, and its triplets."""
        gap = _gap(problem, low)
        matrix = Sum((1.0, low), (1.0, SampledMatrix(problem.pattern, gap)))
        width = min(2 * rank + SPARE, *problem.shape)
        # The first basis knows nothing of the spare directions.
        wide = leading(matrix, basis, width, powers=self.powers if count else 2 * self.powers, seed=count)
        values = xp.to_numpy(wide.values)
        spare = float(values[rank]) if width > rank else 0.0
        floor = 4 * xp.eps(wide.values) * float(values[0])
        return Iterate(low, gap, wide, max(min(epsilon, spare), floor), count)

    def _solve(self, problem: MatrixCompletion, base: FixedRank, weights: FixedRank) -> BurerMonteiro:
        """The tangent part z of the next iterate, from that of this one, which is ``base`` itself."""
        share, pattern = problem.observed, problem.pattern
        inverse = weights.map(lambda a: 1 / (a + share))
        z = FixedRank(0 * base.left, base.core, 0 * base.right)
        r = base.pullback(SampledMatrix(pattern, _gap(problem, base))) - weights.map(_times, z)
        s = base.project(inverse.map(_times, r))
        d, rho = s, r.inner(s)
        target = self.accuracy**2 * float(rho)
        for _ in range(self.inner):
            if not float(rho) > target:
                break
            image = base.ambient(d).entries(pattern.rows, pattern.cols)
            q = base.pullback(SampledMatrix(pattern, image)) + weights.map(_times, d)
            length = rho / d.inner(q)
            z, r = z + d.scale(length), r - q.scale(length)
            s = base.project(inverse.map(_times, r))
            rho, last = r.inner(s), rho
            d = s + d.scale(rho / last)
        return base.ambient(z)


def _gap(problem: MatrixCompletion, point: Any) -> Array:
    """The data less the entries of a point; weights do not matter to a matrix that meets the data."""
    return problem.values - point.entries(problem.pattern.rows, problem.pattern.cols)


def _times(a: Array, b: Array) -> Array:
    return a * b


def _truncated(wide: SVD, rank: int) -> FixedRank:
    u, s, v = wide.arrays()
    return FixedRank(u[:, :rank], xp.asarray_like(xp.namespace(s).diag(s[:rank]), u), v[:, :rank])


def _weights(iterate: Iterate) -> tuple[FixedRank, FixedRank]:
    """The triplets above epsilon, and ``eps^2 / (1/H - eps^2)`` on their tangent space."""
    values, epsilon = iterate.wide.values, iterate.epsilon
    base = _truncated(iterate.wide, max(1, int((values > epsilon).sum())))
    s = values[: base.rank]
    tiny = 1e-30 * epsilon**2  # a triplet at epsilon itself may not move
    backend = xp.namespace(s)
    across = epsilon**2 / backend.maximum(s * epsilon - epsilon**2, 0 * s + tiny)
    product = s[:, None] * s[None, :]
    inside = epsilon**2 / backend.maximum(product - epsilon**2, 0 * product + tiny)
    outer = (0 * base.left.real + across, 0 * base.right.real + across)
    return base, FixedRank(outer[0], inside, outer[1])


@covers("S03")
def MatrixIRLS(accuracy: float = 1e-3, inner: int = 200) -> IterativelyReweighted:
    """Iteratively reweighted least squares for `MatrixCompletion`: the solver of last resort, and a strong one.

    It survives condition numbers of 1e8 and more with three times as many samples as degrees of freedom, where
    factor methods lose the small singular values in their start. Locally it converges quadratically. A step
    costs some ten to twenty conjugate gradient iterations of order ``N r``; the iterate is never formed.

    Parameters
    ----------
    accuracy, inner : float, int
        As for `IterativelyReweighted`.

    Notes
    -----
    The rank is that of the start. Data are met exactly (weights play no part), so on noisy entries the point is a
    start for `ALS`, not a solution: `lowrank_sp.complete` does both. After :cite:`kummerle2021irls`, derived above
    from the majorant; the change of z is solved for instead of z, which keeps small singular values accurate.

    Examples
    --------
    >>> import lowrank_sp as lr
    >>> problem = lr.synthetic.completion(30, 30, 2, observed=0.5, condition_number=1e6, seed=0)
    >>> result = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 2), MatrixIRLS())
    >>> bool(result.history["error"][-1] < 1e-9)
    True
    """
    return IterativelyReweighted(float(accuracy), inner)
