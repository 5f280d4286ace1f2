"""The rank where nobody knows it: from a spectrum, from an over-parameterized fit, or from held-out entries."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import inits, xp
from .escalate import Stalled, held_out_error, split
from .inits.sketch import truncated_svd
from .parameterizations import BurerMonteiro
from .problems import MatrixCompletion, MatrixFactorization, MatrixSensing
from .problems.checks import check_rank
from .result import uninterrupted
from .solve import solve
from .solvers import ALS, PrecGD

__all__ = [
    "given",
    "is_auto",
    "rank_by_gap",
    "rank_by_noise_edge",
    "rank_of_completion",
    "rank_of_matrix",
    "rank_of_sensing",
]

Array = Any

# A singular value below this, relative to the largest, is rounding.
ROUNDING = 1e-11
# The largest rank that is looked for.
MOST = 50
# Ranks beyond the best one that are tried before growth ends, and by how much a rank must predict better.
PATIENCE, GAIN = 2, 0.02
# A relative held-out error at which the rank is found.
KNOWN = 1e-6
# Iterations of the over-parameterized fit.
WIDE = 300


def is_auto(rank: Any) -> bool:
    """Whether the rank is to be found; another word than ``"auto"`` is an error."""
    if isinstance(rank, str) and rank != "auto":
        raise ValueError(f'rank must be an integer or "auto", got {rank!r}')
    return isinstance(rank, str)


def given(rank: Any, problem: Any) -> tuple[int, str]:
    """A rank that the caller gave, checked."""
    rank = check_rank(rank, problem.shape)
    return rank, f"rank {rank} as given"


def _check_single(problem: Any, ndim: int) -> None:
    """Refuse batches, whose members may have different ranks; ``ndim`` is that of the data of one."""
    shape = tuple(problem.data.shape)
    if len(shape) > ndim:
        raise ValueError(f'rank="auto" takes one matrix, got data of shape {shape}; give the rank as an integer')


def rank_by_gap(values: Any) -> int:
    """The k with the largest ratio of singular values number k and k + 1, both raised to rounding level.

    >>> rank_by_gap([5.0, 4.0, 3.0, 1e-3, 9e-4])
    3
    """
    s = np.asarray(values, float)
    if s.size < 2 or s[0] == 0:
        return 1
    s = np.maximum(s, ROUNDING * s[0])
    return int(np.argmax(s[:-1] / s[1:])) + 1


def rank_by_noise_edge(values: Any, shape: tuple[int, int]) -> int:
    """The number of singular values above what white noise of unknown level would have; all of them are given.

    The threshold is the asymptotically optimal one of :cite:`gavish2014threshold`, a multiple of the median
    singular value that depends on the aspect ratio alone; it needs a rank well below half of the smaller side.

    >>> rank_by_noise_edge([9.0, 5.0, 1.1, 1.0, 1.0, 0.9, 0.8], (7, 7))
    2
    """
    s = np.asarray(values, float)
    beta = min(shape) / max(shape)
    share = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    threshold = max(share * float(np.median(s)), ROUNDING * float(s[0]))
    return max(1, int((s > threshold).sum()))


def rank_of_matrix(problem: MatrixFactorization) -> tuple[int, str]:
    """From the whole spectrum where the target is an array, else from the widest gap among the leading values."""
    _check_single(problem, 2)
    if isinstance(problem.data, np.ndarray) or xp.is_torch(problem.data):
        s = xp.to_numpy(xp.namespace(problem.data).linalg.svd(problem.data, full_matrices=False)[1])
        rank = rank_by_noise_edge(s, problem.shape)
        return rank, f"rank {rank} from the singular values above noise"
    width = min(MOST, *problem.shape)
    s = truncated_svd(problem.surrogate(), problem, width, np.random.default_rng(0))[1]
    rank = rank_by_gap(xp.to_numpy(s))
    return rank, f"rank {rank} from the widest gap of {width} singular values"


def rank_of_sensing(problem: MatrixSensing) -> tuple[int, str]:
    """From the widest gap in the spectrum of an over-parameterized fit, damped by the loss (`PrecGD`).

    The fit has as many columns as half of the measurements determine. Its damping keeps the spare columns from
    slowing it, and leaves their singular values at the level of the misfit, which ends the spectrum: where no column is
    spare, the gap is there. Source: :cite:`zhang2021precgd`.
    """
    _check_single(problem, 1)
    m, n = problem.shape
    count = problem.data.shape[-1]
    width = max(2, min(m, n, MOST, int(count / (2 * (m + n)))))
    width = min(width, m, n)
    start = inits.spectral(problem, BurerMonteiro, width)
    result = uninterrupted(solve(problem, start, PrecGD(), WIDE, 1e-10))
    left = result.point.balanced().left
    s = xp.to_numpy(xp.namespace(left).linalg.svd(left, full_matrices=False)[1]).astype(float) ** 2
    misfit = (2 * float(result.fun) / (problem.scale or 1.0)) ** 0.5 * float(np.linalg.norm(s))
    rank = rank_by_gap([*s, min(misfit, s[-1])])
    return rank, f"rank {rank} from the widest gap of a fit of rank {width} by PrecGD"


def rank_of_completion(problem: MatrixCompletion, share: float) -> tuple[int, str]:
    """Grow the rank one by one, from the leading singular vectors of the residual, while held-out entries gain."""
    if problem.data.ndim > 1 or problem.data.shape[0] < 2:
        raise ValueError(
            'rank="auto" takes one matrix with at least two known entries, got values of shape '
            f"{tuple(problem.data.shape)}; give the rank as an integer"
        )
    rest, held = split(problem, share)
    size = float(xp.to_numpy(xp.inner(held[2], held[2], 1)) / held[2].shape[0]) ** 0.5
    most = _determined(rest)
    point, errors = None, []
    for _ in range(most):
        point = _fit(rest, _widened(rest, point))
        errors.append(held_out_error(point, held))
        best = _first_good(errors)
        if errors[-1] <= KNOWN * size or len(errors) - best > PATIENCE:
            break
    rank = _first_good(errors)
    return rank, f"rank {rank} from {share:.0%} held-out entries (error {errors[rank - 1]:.2g} of {size:.2g})"


def _first_good(errors: list[float]) -> int:
    """The last rank that predicted better than all ranks before it, by a share that is no accident."""
    best, rank = np.inf, 1
    for k, error in enumerate(errors, start=1):
        if error < (1 - GAIN) * best:
            best, rank = error, k
    return rank


def _determined(problem: MatrixCompletion) -> int:
    """The largest rank whose degrees of freedom are fewer than the entries."""
    m, n = problem.shape
    count = problem.data.shape[-1]
    return max((k for k in range(1, min(m, n, MOST) + 1) if 1.1 * k * (m + n - k) <= count), default=1)


def _widened(problem: MatrixCompletion, point: BurerMonteiro | None) -> BurerMonteiro:
    """One more column, the leading singular pair of what is not fitted yet."""
    if point is None:
        return inits.spectral(problem, BurerMonteiro, 1)
    cat = xp.namespace(point.left).concatenate
    gap = problem.backproject(-problem.residual(point))
    u, s, v = truncated_svd(gap, problem, 1, np.random.default_rng(0))
    root = (s / problem.observed) ** 0.5
    return BurerMonteiro(cat((point.left, u * root), -1), cat((point.right, v * root), -1))


def _fit(problem: MatrixCompletion, start: BurerMonteiro) -> BurerMonteiro:
    return uninterrupted(solve(problem, start, ALS(), 60, 1e-8, callback=Stalled(0.5 * problem.scale * KNOWN**2))).point
