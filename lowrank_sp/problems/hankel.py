"""Hankel completion: a signal with few frequencies from some of its samples, through FFTs and thin factors only."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..factors import MatrixFactors
from .base import LeastSquares, block_cgls
from .checks import as_data, as_indices

__all__ = ["HankelCompletion", "HankelMatrix", "antidiagonal_means"]

Array = Any


class Transforms:
    """Fourier transforms of the columns of factors; those of the last few are remembered.

    A factor is recognised by identity, and by its values or version, so that changes in place do no harm. Tensors
    that need gradients are transformed anew: a remembered transform would keep their graph.
    """

    KEPT = 6  # a point, a direction, and the point before

    def __init__(self):
        self._known: list[tuple[Array, Any, bool, Array]] = []

    def of(self, factor: Array, conjugate: bool, length: int) -> Array:
        """The transform of ``factor`` (..., k, r), or of its conjugate, padded with zeros to ``length``."""
        conjugate = conjugate and _is_complex(factor)
        for array, mark, flag, spectrum in self._known:
            if array is factor and flag == conjugate and spectrum.shape[-2] == length and _unchanged(array, mark):
                return spectrum
        spectrum = _fft(factor).fft(factor.conj() if conjugate else factor, length, -2)
        if not (xp.is_torch(factor) and (factor.requires_grad or factor.is_inference())):
            mark = factor._version if xp.is_torch(factor) else factor.copy()
            self._known = [(factor, mark, conjugate, spectrum), *self._known[: self.KEPT - 1]]
        return spectrum


def _unchanged(array: Array, mark: Any) -> bool:
    """Whether an array is as it was when the mark was taken: a copy costs far less than a transform."""
    return array._version == mark if xp.is_torch(array) else np.array_equal(array, mark)


class HankelMatrix:
    """The matrix ``z_(i+j)`` of ``shape``, times thin matrices by FFT; never formed.

    Parameters
    ----------
    signal : array (..., m + n - 1)
    shape : (m, n)
    transforms : Transforms, optional
        Shared with whatever transforms the same factors.
    """

    def __init__(self, signal: Array, shape: tuple[int, int], transforms: Transforms | None = None):
        self.signal, self.shape = signal, shape
        self.transforms = Transforms() if transforms is None else transforms
        self.conjugated = False
        self._spectrum: Any = None

    def adjoint(self) -> HankelMatrix:
        other = HankelMatrix(self.signal, self.shape[::-1], self.transforms)
        other.conjugated, other._spectrum = not self.conjugated, self._spectrum
        return other

    def __matmul__(self, x: Array) -> Array:
        """A correlation: the transform of the signal times the conjugate one of x, or for the adjoint of conj(x)."""
        xp.namespace(self.signal, x)
        length = _fft_length(sum(self.shape) - 1)
        fft = _fft(self.signal)
        if self._spectrum is None:
            self._spectrum = fft.fft(self.signal, length)
        spectrum = self.transforms.of(x, not self.conjugated, length)
        out = fft.ifft(self._spectrum[..., None] * spectrum.conj(), length, -2)[..., : self.shape[0], :]
        if not (_is_complex(x) or _is_complex(self.signal)):
            return out.real
        if not self.conjugated:
            return out
        return out.conj_physical() if xp.is_torch(out) else out.conj()


def antidiagonal_means(left: Array, right: Array, transforms: Transforms | None = None) -> Array:
    """The signal (..., m + n - 1) whose Hankel matrix is nearest to ``left right^H``."""
    xp.namespace(left, right)
    transforms = Transforms() if transforms is None else transforms
    size = left.shape[-2] + right.shape[-2] - 1
    length = _fft_length(size)
    spectra = transforms.of(left, False, length) * transforms.of(right, True, length)
    sums = _fft(left).ifft(spectra.sum(-1), length)[..., :size]
    sums = sums if _is_complex(left) or _is_complex(right) else sums.real
    return sums / xp.asarray_like(_weights(left.shape[-2], right.shape[-2]), sums)


def _fft(like: Array) -> Any:
    """torch's transforms, or scipy's, which keep single precision and vectorize over columns."""
    if xp.is_torch(like):
        return xp.namespace(like).fft
    import scipy.fft

    return scipy.fft


@lru_cache(maxsize=8)
def _weights(m: int, n: int) -> np.ndarray:
    """How often each sample occurs in the Hankel matrix."""
    k = np.arange(1, m + n)
    return np.minimum(np.minimum(k, k[::-1]), min(m, n)).astype(float)


def _fft_length(size: int) -> int:
    from scipy.fft import next_fast_len

    return next_fast_len(size)


def _is_complex(a: Array) -> bool:
    return a.is_complex() if xp.is_torch(a) else a.dtype.kind == "c"


class HankelImage:
    """What `HankelCompletion` measures of a matrix: the matrix in factors, its signal, and the misfit of that.

    A vector of the space ``W, x, e``: inner products are ``Re <W, W'> - <H x, H x'> + <H e, H e'> / p``, so the
    part of W that is no Hankel matrix, and the misfit of the samples.
    """

    def __init__(self, space: HankelCompletion, terms: tuple[tuple[Any, Array, Array], ...], signal: Any, misfit: Any):
        self.space, self.terms, self.signal, self.misfit = space, terms, signal, misfit

    def __add__(self, other: HankelImage) -> HankelImage:
        signal, misfit = self.signal + other.signal, self.misfit + other.misfit
        return HankelImage(self.space, self.terms + other.terms, signal, misfit)

    def __rmul__(self, factor: Any) -> HankelImage:
        scaled = tuple((factor * c, left, right) for c, left, right in self.terms)
        return HankelImage(self.space, scaled, factor * self.signal, factor * self.misfit)

    def __neg__(self) -> HankelImage:
        return -1.0 * self

    def __sub__(self, other: HankelImage) -> HankelImage:
        return self + -1.0 * other

    def fit(self, other: HankelImage) -> Any:
        """The part of the inner product that the samples see; free of cancellation."""
        return xp.inner(self.space.weights * self.misfit, other.misfit, 1) / self.space.observed

    def excess(self, other: HankelImage) -> Any:
        """The inner product of the parts that are no Hankel matrices; rounds at 1e-16 of the matrices."""
        total: Any = -xp.inner(self.space.weights * self.signal, other.signal, 1)
        for c, left, right in self.terms:
            for d, u, v in other.terms:
                total = total + c * d * xp.inner(xp.adjoint(u) @ left, xp.adjoint(v) @ right)
        return total


class _HankelGradient:
    """``sum_k c_k L_k R_k^H + H(z)``."""

    def __init__(self, terms: Any, hankel: HankelMatrix):
        self.terms, self.hankel = terms, hankel

    def adjoint(self) -> _HankelGradient:
        return _HankelGradient(tuple((c, b, a) for c, a, b in self.terms), self.hankel.adjoint())

    def __matmul__(self, x: Array) -> Array:
        total = self.hankel @ x
        for c, left, right in self.terms:
            total = total + c * (left @ (xp.adjoint(right) @ x))
        return total


@covers("S03")
class HankelCompletion(LeastSquares):
    """A signal from some of its samples, when its Hankel matrix ``H(x)_ij = x_(i+j)`` has low rank.

    A sum of r (damped) complex exponentials has rank r: this is spectral super-resolution. W is the Hankel
    matrix, x its signal by averages along antidiagonals, and the loss is
    ``1/2 ||W - H(x)||_F^2 + 1/(2p) || H(e) ||_F^2`` with e the misfit of the observed samples and p their share.
    One evaluation costs ``O(r N log N)`` for a signal of length N; no matrix is formed.

    Parameters
    ----------
    positions : integer array (K,)
        Which samples are observed; zero-based, each at most once.
    values : array (K,)
        The samples, real or complex.
    length : int
        N, at least 2.
    rows : int, optional
        Rows of the Hankel matrix; the columns are ``length + 1 - rows``. Square by default.
    truth : array (N,), optional
        The signal that errors are measured against, by the Frobenius norm of its Hankel matrix.

    Raises
    ------
    ValueError, TypeError
        For positions out of range or repeated, values that are NaN, infinite or not numeric, or lengths that
        do not fit.

    Notes
    -----
    Source: :cite:`cai2018hankel`; by ScaledGD :cite:`tong2021scaledgd`. The recorded loss drops a
    non-Hankel part below 1e-15 of ``||W||_F^2``, where it is rounding.

    >>> import lowrank_sp as lr
    >>> tone = np.exp(0.5j * np.pi * np.arange(15))
    >>> problem = HankelCompletion([0, 1, 3, 4, 6, 9, 11, 14], tone[[0, 1, 3, 4, 6, 9, 11, 14]], length=15)
    >>> result = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, rank=1), lr.ScaledCG())
    >>> bool(np.allclose(problem.signal(result.point), tone)), problem.frequencies(result.point).round(6).tolist()
    (True, [0.25])
    """

    data_ndim = 1

    def __init__(self, positions: Any, values: Any, length: int, rows: int | None = None, truth: Any = None):
        if int(length) != length or length < 2:
            raise ValueError(f"length must be an integer of at least 2, got {length!r}")
        rows = int(length) // 2 + 1 if rows is None else int(rows)
        if not 1 <= rows <= length:
            raise ValueError(f"rows must lie in [1, length] = [1, {length}], got {rows}")
        self.shape = (rows, int(length) + 1 - rows)
        values = as_data(values, "values", 1)
        positions = as_indices(positions, "positions", int(length))
        xp.namespace(positions, values)
        if values.ndim != 1 or positions.shape != values.shape:
            raise ValueError(
                f"positions and values must have one length, got {tuple(positions.shape)} and {tuple(values.shape)}"
            )
        if len(set(positions.tolist())) < positions.shape[0]:
            raise ValueError("positions repeats samples; average repeated observations first")
        self.values, self.observed = values, positions.shape[0] / length
        self.weights = 1 * xp.asarray_like(_weights(*self.shape), values.real)  # those that are kept stay private
        self._mask, self._samples = _scatter(positions, values, int(length))
        self.data: Any = HankelImage(self, (), 0 * self._samples, self._samples)
        self.refresh, self.truth, self._transforms = 1, truth, Transforms()
        self.scale = float(xp.to_numpy(self.inner(self.data, self.data)))

    def signal(self, point: MatrixFactors) -> Array:
        """x (..., N): the averages of W along its antidiagonals."""
        return antidiagonal_means(*point.product())

    def frequencies(self, point: MatrixFactors) -> Array:
        """The frequencies (r,) in [0, 1), cycles per sample: the angles of the `poles`."""
        return np.sort(np.angle(self.poles(point)) / (2 * np.pi) % 1.0)

    def poles(self, point: MatrixFactors) -> np.ndarray:
        """The z_k (r,) of the exponentials ``z_k^t``, by rotational invariance (ESPRIT).

        Source: :cite:`roy1989esprit`.
        """
        left, right = point.product()
        backend = xp.namespace(left)
        u = (
            backend.linalg.qr(left)[0]
            @ backend.linalg.svd(backend.linalg.qr(left)[1] @ xp.adjoint(backend.linalg.qr(right)[1]))[0]
        )
        return np.linalg.eigvals(xp.to_numpy(backend.linalg.pinv(u[:-1]) @ u[1:]))

    def measure(self, *sums):
        out = []
        for points in sums:
            terms = tuple((1.0, *p.product()) for p in points)
            signal: Any = sum(antidiagonal_means(left, right, self._transforms) for _, left, right in terms)
            out.append(HankelImage(self, terms, signal, self._mask * signal))
        return out

    def backproject(self, residual):
        z = residual.misfit / self.observed - residual.signal
        return _HankelGradient(residual.terms, HankelMatrix(z, self.shape, self._transforms))

    def inner(self, a, b):
        return a.fit(b) + a.excess(b)

    def loss(self, residual):
        excess = residual.excess(residual)
        size = xp.inner(self.weights * residual.signal, residual.signal, 1)
        return 0.5 * (residual.fit(residual) + excess * (excess > 8 * xp.eps(self.weights) * size))

    def surrogate(self):
        return HankelMatrix(self._samples / self.observed, self.shape)

    def like(self):
        return self._samples

    def error(self, point, residual=None) -> Any:
        if self.truth is None:
            return None
        gap = (self.signal(point) if residual is None else residual.signal) - self.truth
        square = xp.inner(self.weights * self.truth, self.truth, 1)
        return (xp.inner(self.weights * gap, gap, 1) / square) ** 0.5

    def solve_block(self, point, gradient, index, ridge):
        return block_cgls(self, point, gradient, index, ridge)


def _scatter(positions: Array, values: Array, length: int) -> tuple[Array, Array]:
    """0/1 mask and zero-filled samples (N,)."""
    if xp.is_torch(values):
        mask, samples = values.real.new_zeros(length), values.new_zeros(length)
    else:
        mask, samples = np.zeros(length, values.real.dtype), np.zeros(length, values.dtype)
    mask[positions] = 1
    samples[positions] = values
    return mask, samples
