"""Subspace tracking: a low-dimensional subspace that vectors with unknown entries come from, one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from . import xp
from .operators import unmasked
from .problems.checks import as_data, check_rank

__all__ = ["GROUSE", "PETRELS", "Subspace", "Tracked", "Tracker", "track"]

Array = Any


class Tracked(NamedTuple):
    """What a stream of vectors leaves behind."""

    subspace: Subspace
    """After the last vector; ``subspace.follow(more)`` goes on."""
    filled: Any
    """The vectors (k, n), each with predictions where it is unknown, from the subspace right after that vector. One
    without any known entry stays NaN."""


class Tracker(ABC):
    """How a subspace follows a vector: a pure function."""

    @abstractmethod
    def step(self, subspace: Subspace, known: Array, values: Array, coefficients: Array) -> Subspace:
        """The subspace after a vector with ``values`` (K,) where ``known`` (n,) is true, which the factor of the
        subspace fits best with ``coefficients`` (r,)."""


@dataclass(frozen=True)
class Subspace:
    """The column space of a factor (n, r), with what its tracker remembers.

    ``seen`` counts the vectors that moved it. Points are frozen: `follow` returns a new one.
    """

    tracker: Tracker
    factor: Array
    memory: Any = None
    seen: int = 0

    @property
    def basis(self) -> Array:
        """Orthonormal columns (n, r)."""
        return xp.orthonormalize(self.factor)

    def fill(self, vectors: Any) -> Array:
        """The vectors (k, n) with predictions where they are NaN; the subspace stays as it is.

        Raises
        ------
        ValueError, TypeError
            As for `track`.
        """
        vectors = _as_vectors(vectors, self)
        return xp.namespace(vectors).stack([self._filled(v, *_known(v)) for v in vectors])

    def follow(self, vectors: Any) -> Tracked:
        """Follow more vectors (k, n), in the order of their rows; errors as for `track`."""
        vectors, subspace, filled = _as_vectors(vectors, self), self, []
        for vector in vectors:
            known, values = _known(vector)
            if values.shape[0]:
                moved = subspace.tracker.step(subspace, known, values, _fitted(subspace.factor[known], values))
                subspace = replace(moved, seen=subspace.seen + 1)
            filled.append(subspace._filled(vector, known, values))
        return Tracked(subspace, xp.namespace(vectors).stack(filled))

    def _filled(self, vector: Array, known: Array, values: Array) -> Array:
        if not values.shape[0]:
            return vector
        return xp.namespace(vector).where(known, vector, self.factor @ _fitted(self.factor[known], values))


@dataclass(frozen=True)
class GROUSE(Tracker):
    """Gradient steps along geodesics of the Grassmannian; one costs ``O(n r + K r^2)`` for K known entries.

    With the fit ``p = U w`` and the residual g of the known entries, the direction ``p / |p|`` turns by an angle
    towards ``g / |g|``, and the rest of the subspace stays.

    Parameters
    ----------
    share : float
        Of the angle ``arctan(|g| / |p|)``, in (0, 1]. 1 makes a complete vector lie in the subspace at once and
        suits exact data; noise is averaged over about ``1 / share`` vectors.

    Raises
    ------
    ValueError
        If the share is out of range.

    Notes
    -----
    Source: :cite:`balzano2010grouse`; this angle :cite:`zhang2016grouse`.
    """

    share: float = 1.0

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")

    def step(self, subspace, known, values, coefficients):
        u, w, backend = subspace.factor, coefficients, xp.namespace(values)
        fit, rest = u @ w, 0 * u[:, 0]
        rest[known] = values - fit[known]
        size, gap = backend.linalg.norm(fit), backend.linalg.norm(rest)
        if not (float(size) and float(gap)):
            return subspace
        angle = self.share * backend.arctan(gap / size)
        turn = (backend.cos(angle) - 1) / size * fit + backend.sin(angle) / gap * rest
        return replace(subspace, factor=u + turn[:, None] * (w.conj() / backend.linalg.norm(w)))


@dataclass(frozen=True)
class PETRELS(Tracker):
    """Recursive least squares for every row of the factor; one step costs ``O(n r^2 + K r^3)`` for K known entries.

    Row i of D minimises ``sum_t forgetting^(T-t) |v_ti - D_i a_t|^2`` over the vectors in which entry i is known, with
    the coefficients ``a_t`` that each of them had when it came.

    Parameters
    ----------
    forgetting : float
        In (0, 1]: about the last ``1 / (1 - forgetting)`` vectors count; 1 is for a subspace that stays.
    ridge : float
        Weight of the start, relative to the mean square of the first coefficients.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    The matrices of the recursion are kept, not their inverses, whose update loses symmetry and definiteness where a
    row is unknown for long. Source: :cite:`chi2013petrels`.
    """

    forgetting: float = 0.98
    ridge: float = 0.01

    def __post_init__(self):
        if not 0 < self.forgetting <= 1:
            raise ValueError(f"forgetting must lie in (0, 1], got {self.forgetting}")
        if not (self.ridge > 0 and np.isfinite(self.ridge)):
            raise ValueError(f"ridge must be positive and finite, got {self.ridge}")

    def step(self, subspace, known, values, coefficients):
        factor, a = subspace.factor * 1, coefficients
        grams = self.forgetting * (self._start(factor, a) if subspace.memory is None else subspace.memory)
        grams[known] += a[:, None] * a.conj()
        gains = xp.solve_psd(grams[known], (0 * factor[known] + a)[..., None], 0.0)[..., 0].conj()
        factor[known] += (values - factor[known] @ a)[:, None] * gains
        return replace(subspace, factor=factor, memory=grams)

    def _start(self, factor: Array, a: Array) -> Array:
        """Multiples of the identity (n, r, r)."""
        square = float(xp.inner(a, a, 1)) / a.shape[0]
        return self.ridge * (square or 1.0) * (xp.eye_like(a[:, None] * a.conj()) + 0 * factor[:, :, None])


def track(vectors: Any, rank: int, tracker: Tracker | None = None, seed: Any = 0) -> Tracked:
    """Follow the subspace of vectors that come one after the other, with NaN for what is unknown.

    Parameters
    ----------
    vectors : array (k, n)
        Rows in the order of time; the mask of a NumPy masked array counts as NaN.
    rank : int
    tracker : Tracker, optional
        `PETRELS()` by default, which needs the fewest vectors; `GROUSE()` is the cheapest.
    seed : int or Generator
        Of the random subspace at the start.

    Returns
    -------
    Tracked
        ``(subspace, filled)``; ``subspace.basis`` (n, r) is orthonormal, and ``subspace.follow(more)`` goes on.

    Raises
    ------
    ValueError, TypeError
        For vectors that are no floating array with two axes, infinite, all unknown, of another length or library than
        before, or a rank out of range.

    Notes
    -----
    For all vectors at once `complete` is more exact.

    >>> angles = np.linspace(0, 1, 60)
    >>> plane = np.stack([np.cos(angles), np.sin(angles), np.ones(60), angles * 0], axis=1)  # three dimensions of four
    >>> plane[30, 3] = np.nan
    >>> subspace, filled = track(plane, rank=3)
    >>> float(abs(filled[30, 3]).round(6))
    0.0
    """
    tracker = PETRELS() if tracker is None else tracker
    if not isinstance(tracker, Tracker):
        raise TypeError(f"tracker must be lr.PETRELS(...) or lr.GROUSE(...), got {tracker!r}")
    vectors = _as_vectors(vectors)
    n = int(vectors.shape[1])
    rank = check_rank(rank, (n, n))
    rng, like = np.random.default_rng(seed), vectors[:1, :1]
    factor = xp.asarray_like(rng.standard_normal((n, rank)), like)
    return Subspace(tracker, xp.orthonormalize(factor)).follow(vectors)


def _as_vectors(vectors: Any, subspace: Subspace | None = None) -> Array:
    """Floating vectors (k, n), as the subspace has them."""
    vectors = vectors.detach() if xp.is_torch(vectors) else unmasked(vectors)
    if vectors.ndim != 2 or 0 in tuple(vectors.shape):
        raise ValueError(f"vectors must be an array (k, n) of k vectors, got shape {tuple(vectors.shape)}")
    if not xp.is_torch(vectors) and vectors.dtype.kind not in "fc":
        vectors = as_data(vectors, "vectors")
    unknown, backend = vectors != vectors, xp.namespace(vectors)
    if bool(unknown.all()):
        raise ValueError("vectors hold only NaN: there are no known entries")
    zeroed = as_data(backend.where(unknown, backend.zeros_like(vectors), vectors), "vectors")
    like = zeroed if subspace is None else subspace.factor
    backend = xp.namespace(zeroed, like)
    if subspace is not None and zeroed.shape[1] != like.shape[0]:
        raise ValueError(f"vectors must have length {like.shape[0]}, got {zeroed.shape[1]}")
    kind = backend.promote_types(backend.promote_types(zeroed.dtype, like.dtype), backend.float32)
    zeroed = xp.asarray_like(zeroed, backend.zeros_like(zeroed, dtype=kind))
    return backend.where(unknown, zeroed + float("nan"), zeroed)


def _known(vector: Array) -> tuple[Array, Array]:
    """Where a vector (n,) is known, and its values there."""
    known = ~xp.namespace(vector).isnan(vector)
    return known, vector[known]


def _fitted(rows: Array, values: Array) -> Array:
    """The shortest least-squares coefficients (r,) of some rows of a factor."""
    return xp.namespace(rows).linalg.pinv(rows, rtol=max(rows.shape) * xp.eps(rows)) @ values
