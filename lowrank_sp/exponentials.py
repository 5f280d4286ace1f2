"""Sums of exponentials by their poles: Newtonized matching pursuit, for Hankel completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from . import xp
from .coverage import covers
from .descent import Solver, State
from .parameterizations import BurerMonteiro
from .problems.hankel import HankelCompletion, HankelImage

__all__ = ["NOMP", "NewtonizedPursuit"]

Array = Any

# Peaks closer than this many bins of the padded spectrum (half a bin of the signal each) are one.
APART = 4
# Newton steps move a pole by at most this many bins of the signal, and are cut so often if the misfit grows.
FARTHEST, CUTS, CUT = 0.3, 4, 0.25
# A misfit that grows by no more than this is the same: near the best fit to noise, steps still lower the gradient.
ROUNDING = 1e-12
# All poles are there but the misfit, above the first share of the data, is still above the second of the one before.
MET, SLOW = 1e-9, 0.98
# What an exchange of one exponential for another must gain.
GAIN = 0.99


class Samples(NamedTuple):
    """What the pursuit needs of a problem, on the host."""

    positions: Array  # (K,)
    values: Array  # (K,), times the roots
    roots: Array  # (K,) of the weights that the loss gives the samples
    length: int
    real: bool


class Fit(NamedTuple):
    """Exponentials with the coefficients that fit the samples best.

    ``logs`` are the logarithms of the poles; of real signals those in the upper half plane, which stand for their
    conjugates too. ``misfit`` is relative to the data.
    """

    logs: Array  # (k,)
    every: Array  # (r,), conjugates included
    table: Array  # (N, r), the exponentials, of size one where they are largest
    basis: Array  # (K, r), orthonormal, of the weighted ones at the samples
    coefficients: Array  # (r,)
    gap: Array  # (K,)
    misfit: float


def powers(logs: Array, length: int) -> Array:
    """``exp(logs t)`` (length, r) for t = 0..length-1, divided by the last one where they grow.

    As products of two short tables, which takes ``r sqrt(length)`` exponentials.
    """
    grows = logs.real > 0
    logs = np.where(grows, -logs, logs)
    width = int(length**0.5) + 1
    coarse, fine = (np.exp(np.arange(0, end, by)[:, None] * logs) for end, by in ((length, width), (width, 1)))
    table = (coarse[:, None] * fine).reshape(len(coarse) * width, logs.size)[:length]
    table[:, grows] = table[::-1, grows]
    return table


def fitted(samples: Samples, logs: Array) -> Fit:
    """The least squares fit of the coefficients."""
    pairs = (logs.imag > 0) & (logs.imag < np.pi) if samples.real else np.zeros(logs.shape, bool)
    every = np.concatenate((logs, logs[pairs].conj()))
    table = powers(every, samples.length)
    weighted = samples.roots[:, None] * table[samples.positions]
    size = np.linalg.norm(weighted, axis=0)
    size = size + (size == 0)
    basis, core = np.linalg.qr(weighted / size)
    # Poles that coincide share their coefficient.
    coefficients = np.linalg.lstsq(core, basis.conj().T @ samples.values, rcond=1e-13)[0] / size
    gap = samples.values - weighted @ coefficients
    misfit = float(np.linalg.norm(gap) / (np.linalg.norm(samples.values) or 1.0))
    return Fit(logs, every, table, basis, coefficients, gap, misfit)


def peaks(samples: Samples, gap: Array, room: int, share: float) -> Array:
    """Logarithms of the poles on the unit circle where the spectrum of the gap peaks, at most ``room`` with conjugates.

    The highest, and those that are at least ``share`` as high.
    """
    from scipy.fft import fft, next_fast_len

    half = next_fast_len(samples.length)
    filled = np.zeros(2 * half, complex)
    filled[samples.positions] = samples.roots * gap
    size = abs(fft(filled))
    if samples.real:
        size[half + 1 :] = 0
        if room == 1:
            size[1:half] = 0  # there, poles come in pairs
    found, least = [], share * size.max()
    while room > 0:
        at = int(size.argmax())
        cost = 2 if samples.real and 0 < at < half else 1
        if cost > room or size[at] < least or (found and not size[at]):
            break
        found.append(at)
        room -= cost
        size[np.arange(at - APART, at + APART + 1) % size.size] = 0
    return 1j * np.pi / half * np.array(found)


def moved(samples: Samples, fit: Fit) -> tuple[Fit, float]:
    """The fit after a step of Gauss and Newton in the poles, coefficients eliminated, and the gradient before.

    The gradient is that of the logarithm of the misfit in poles whose effect has size one.
    """
    # Times from the sample where an exponential has size one: other poles get new coefficients as well.
    effect = (samples.roots * samples.positions)[:, None] * fit.table[samples.positions] * fit.coefficients
    effect -= fit.basis @ (fit.basis.conj().T @ effect)
    size = np.linalg.norm(effect, axis=0)
    size = size + (size == 0)
    effect /= size
    slope = effect.conj().T @ fit.gap
    change = (xp.solve_psd(effect.conj().T @ effect, slope[:, None])[:, 0] / size)[: fit.logs.size]
    if samples.real:
        paired = (fit.logs.imag > 0) & (fit.logs.imag < np.pi)
        change = np.where(paired, change, change.real)
    change = change / np.maximum(1.0, abs(change) * samples.length / (2 * np.pi * FARTHEST))
    gradient = float(np.linalg.norm(slope) / (np.linalg.norm(samples.values) or 1.0))
    for _ in range(CUTS):
        new = fitted(samples, _folded(samples, fit.logs + change))
        if new.misfit <= fit.misfit * (1 + ROUNDING):
            return new, gradient
        change = CUT * change
    return fit, gradient


def _folded(samples: Samples, logs: Array) -> Array:
    """Poles of real signals back in the upper half plane."""
    if not samples.real:
        return logs
    imaginary = abs(logs.imag)
    return logs.real + 1j * np.where(imaginary > np.pi, 2 * np.pi - imaginary, imaginary)


class Search(NamedTuple):
    """The fit to go on from, the best one with all exponentials, and how many more exchanges are tried."""

    samples: Samples
    fit: Fit
    best: Fit | None
    tries: int
    rank: int
    unit: float


@dataclass(frozen=True)
class NewtonizedPursuit(Solver):
    """Matching pursuit of exponentials with Newton steps in all poles; see `NOMP`."""

    share: float = 0.5
    tries: int = 4
    logs: tuple[complex, ...] = ()
    name: str = "NOMP"
    form: ClassVar[type] = BurerMonteiro

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")
        if isinstance(self.tries, bool) or not isinstance(self.tries, int) or self.tries < 0:
            raise ValueError(f"tries must be an integer that is not negative, got {self.tries!r}")

    def start(self, problem, point):
        if not isinstance(problem, HankelCompletion):
            raise TypeError(f"{self.name} needs a HankelCompletion problem, not {type(problem).__name__}")
        if point.batch_shape:
            raise ValueError(f"{self.name} runs one problem at a time, got a batch of {point.batch_shape}")
        samples = _samples(problem)
        begin = fitted(samples, np.array(self.logs, complex))
        residual = problem.residual(point)
        rank = point.to(BurerMonteiro).rank
        if begin.every.size > rank:
            raise ValueError(f"poles must be at most rank = {rank} with their conjugates, got {begin.every.size}")
        unit = float(xp.to_numpy(point.norm())) * problem.scale**0.5
        search = Search(samples, begin, None, self.tries, rank, unit)
        return State(point, residual, problem.loss(residual), None, search)

    def step(self, problem, state):
        search = state.memory
        samples, old = search.samples, search.fit
        room = search.rank - old.every.size
        if room:
            new = peaks(samples, old.gap, room, self.share)
            old = fitted(samples, np.concatenate((old.logs, new)))
        fit, gradient = moved(samples, old)
        point, residual = _image(problem, samples, fit, search.rank)
        search = self._exchanged(search._replace(fit=fit), old.misfit)
        return State(point, residual, problem.loss(residual), gradient * search.unit, search)

    def _exchanged(self, search: Search, before: float) -> Search:
        """Where no step helps and the data are not met: without the weakest exponential, for another one."""
        fit, best, tries = search.fit, search.best, search.tries
        full = fit.every.size == search.rank
        if not (tries and full and fit.misfit > max(MET, SLOW * before)):
            return search
        if best is None or fit.misfit < GAIN * best.misfit:
            best, tries = fit, self.tries
        else:
            tries -= 1
        if not tries:
            return search._replace(fit=best, best=best, tries=0)
        strength = abs(best.coefficients) * np.linalg.norm(best.table, axis=0)
        weakest = np.argsort(strength[: best.logs.size])[(self.tries - tries) % best.logs.size]
        return search._replace(fit=fitted(search.samples, np.delete(best.logs, weakest)), best=best, tries=tries)


def _samples(problem: HankelCompletion) -> Samples:
    data, weights = xp.to_numpy(problem._samples), xp.to_numpy(problem.weights)
    positions = np.flatnonzero(xp.to_numpy(problem._mask))
    roots = weights[positions].astype(float) ** 0.5
    real = data.dtype.kind != "c"
    return Samples(positions, roots * data[positions], roots, data.shape[0], real)


def _image(problem: HankelCompletion, samples: Samples, fit: Fit, rank: int) -> tuple[BurerMonteiro, Any]:
    """The point of the exponentials, zeros where some are missing, and its residual: it is a Hankel matrix."""
    like = problem.like()
    left, right = (powers(fit.every, k) for k in problem.shape)
    left, right = left * fit.coefficients, right.conj()
    signal = fit.table @ fit.coefficients
    if samples.real:
        left, right, signal = *_real_factors(fit.logs, left, right), signal.real
    columns = ((0, 0), (0, rank - left.shape[1]))
    left, right = (xp.asarray_like(np.pad(a, columns), like) for a in (left, right))
    signal = xp.asarray_like(signal, like)
    image = HankelImage(problem, ((1.0, left, right),), signal, problem._mask * signal)
    return BurerMonteiro(left, right), image - problem.data


def _real_factors(logs: Array, left: Array, right: Array) -> tuple[Array, Array]:
    """``2 Re(u v^H)`` of every pair and ``Re(u v^H)`` of every single exponential, as real factors."""
    count, paired = logs.size, (logs.imag > 0) & (logs.imag < np.pi)
    u, v = left[:, :count], right[:, :count]
    u = u * np.where(paired, 2.0, 1.0)
    columns = [np.concatenate((a.real, a.imag[:, paired]), axis=1) for a in (u, v)]
    return columns[0], columns[1]


@covers("S03")
def NOMP(share: float = 0.5, tries: int = 4, poles: Any = ()) -> NewtonizedPursuit:
    """Newtonized matching pursuit for `HankelCompletion`: the exponentials one after the other, and all poles refined.

    Every iteration adds those at the peaks of the spectrum of the residual, until there are as many as the rank
    says, and takes one Gauss-Newton step in all poles, with the coefficients eliminated; then it converges
    quadratically. Where that ends short of the data, the weakest exponential is exchanged for another. An iteration
    costs ``O(K r^2 + N r)`` for K of N samples, and no transform of a factor.

    Parameters
    ----------
    share : float
        Peaks that are at least this share of the highest one are taken together, in (0, 1].
    tries : int
        Exchanges in a row that may fail.
    poles : sequence of complex numbers
        Those to begin with, none by default; of real signals all that are not below the real axis.

    Raises
    ------
    ValueError, TypeError
        For settings out of range, other problems, batches, or more poles than the rank.

    Notes
    -----
    The start gives nothing but the rank. It needs frequencies that are about a bin, ``1 / N``, apart: where they are
    closer, `ScaledCG` may succeed where this fails (`lowrank_sp.complete_signal` takes both). The gradient norm that
    is recorded is that in the poles, in units of the gradient of the data.
    Source: :cite:`mamandipoor2016nomp`, there for one exponential at a time; coefficients eliminated as in
    :cite:`golub1973varpro`, and the exchanges, are ours.

    Examples
    --------
    >>> import lowrank_sp as lr
    >>> problem = lr.synthetic.hankel(255, rank=5, observed=0.3, seed=0)
    >>> result = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 5), lr.NOMP())
    >>> bool(result.history["error"][-1] < 1e-10)
    True
    """
    values = np.asarray(poles, complex).reshape(-1)
    if not (np.isfinite(values).all() and (values != 0).all()):
        raise ValueError(f"poles must be finite numbers other than zero, got {poles!r}")
    logs = np.log(values)
    return NewtonizedPursuit(float(share), tries, tuple(complex(z) for z in logs))
