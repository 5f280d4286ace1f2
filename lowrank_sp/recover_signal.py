"""The one-line entry point for signals: exponentials from some of the samples of their sum."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import inits, xp
from .exponentials import NOMP
from .parameterizations import BurerMonteiro
from .problems.checks import check_limits, warn_underdetermined
from .problems.hankel import HankelCompletion
from .ranks import given
from .result import Result, Status, explained, join, uninterrupted
from .solve import solve
from .solvers import ScaledCG

__all__ = ["Exponentials", "complete_signal"]

# Relative residuals: at which exact data count as met, and from which on a fit to noise is no better than another.
MET, BETTER = 1e-9, 0.999
# Poles below this size are those of a sample or two.
LEAST = 1e-6


class Exponentials(NamedTuple):
    """A signal ``sum_k c_k z_k^t``."""

    result: Result
    """Of the Hankel matrix of the signal."""
    signal: Any
    """All of its samples (N,), in the library of the data."""
    poles: Any
    """The z_k (r,), by angle: ``angle(poles) / (2 pi)`` are the frequencies, ``abs(poles)`` the decay a sample."""


def complete_signal(signal: Any, rank: int, max_iter: int = 500, tol: float = 1e-10) -> Exponentials:
    """A sum of few (damped) exponentials from some of its samples, and their poles.

    Newtonized matching pursuit. Where that does not meet the data, conjugate gradients in the metric of ScaledGD on
    the factors of the Hankel matrix, whose poles are refined by the same Newton steps. What fits the data better is
    taken: for exact data whichever meets them, for noisy ones the least squares fit of the poles.

    Parameters
    ----------
    signal : array (N,) or HankelCompletion
        NaN marks unknown samples.
    rank : int
        The number of exponentials; a real oscillation is two, of conjugate poles.
    max_iter, tol : int, float
        Of every stage.

    Raises
    ------
    ValueError, TypeError
        For a signal that is no array with one axis, infinite, or all unknown, or a rank out of range. Fewer samples
        than poles and coefficients are a warning.

    Returns
    -------
    Exponentials
        ``(result, signal, poles)``.

    >>> t = np.arange(40)
    >>> samples = np.cos(0.7 * t)
    >>> samples[::3] = np.nan
    >>> result, signal, poles = complete_signal(samples, rank=2)
    >>> bool(np.allclose(signal, np.cos(0.7 * t))), abs(np.angle(poles)).round(6).tolist()
    (True, [0.7, 0.7])
    """
    check_limits(max_iter, tol)
    problem = signal if isinstance(signal, HankelCompletion) else _problem(signal)
    rank, why = given(rank, problem)
    warn_underdetermined(problem.values.shape[0], 2 * rank, "samples", "poles and coefficients")
    start = inits.spectral(problem, BurerMonteiro, rank)
    pursued = solve(problem, start, NOMP(), max_iter, tol)
    gap = _misfit(problem, pursued)
    chosen = join([pursued], f"NOMP to a relative residual of {gap:.1e}")
    if gap > MET and pursued.status is not Status.INTERRUPTED:
        chosen = _otherwise(problem, start, chosen, max_iter, tol)
    poles = problem.poles(chosen.point)
    return Exponentials(explained(chosen, why), problem.signal(chosen.point), poles[np.argsort(np.angle(poles))])


def _otherwise(problem: HankelCompletion, start: Any, pursued: Result, max_iter: int, tol: float) -> Result:
    """Conjugate gradients, Newton steps from their poles if the data are noisy, or the pursuit if it fits as well."""
    descended = uninterrupted(solve(problem, start, ScaledCG(), max_iter, tol))
    gap = _misfit(problem, descended)
    words = f"{pursued.choice} -> ScaledCG to {gap:.1e}"
    if gap <= MET:
        return join([pursued, descended], words)
    poles: Any = problem.poles(descended.point)
    if not np.iscomplexobj(xp.to_numpy(problem.like())):
        poles = poles[poles.imag >= 0]
    refined = uninterrupted(solve(problem, start, NOMP(tries=0, poles=poles[abs(poles) > LEAST]), max_iter, tol))
    after = _misfit(problem, refined)
    words += f" -> NOMP from its poles to {after:.1e}"
    if after < BETTER * _misfit(problem, pursued):
        return join([pursued, descended, refined], words)
    spent = sum(float(stage.history["seconds"][-1]) for stage in (descended, refined))
    return join([pursued], f"{words}, not taken", spent)


def _problem(signal: Any) -> HankelCompletion:
    if not xp.is_torch(signal):
        signal = np.asarray(signal)
        if signal.dtype.kind not in "fc":
            raise TypeError(f"signal must be floating so that NaN can mark unknown samples, got {signal.dtype}")
    if signal.ndim != 1:
        raise ValueError(f"signal must have one axis, got shape {tuple(signal.shape)}")
    known = ~xp.namespace(signal).isnan(signal)
    if not bool(known.any()):
        raise ValueError("signal holds only NaN: there are no observed samples")
    positions = known.nonzero()[:, 0] if xp.is_torch(signal) else known.nonzero()[0]
    return HankelCompletion(positions, signal[known], signal.shape[0])


def _misfit(problem: HankelCompletion, result: Result) -> float:
    """The part of the loss that the samples see, relative to the data."""
    gap = problem.residual(result.point)
    return float(xp.to_numpy(gap.fit(gap))) ** 0.5 / (problem.scale**0.5 or 1.0)
