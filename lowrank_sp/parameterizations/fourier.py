"""A few real Fourier modes with trained coefficients: FourierFT."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..constants import steps
from ..coverage import covers
from ..factors import Multilinear, factorization
from ..indexing import beside, draw, gather, scatter
from ..rearrange import is_array
from ..spaces import FIXED, FLAT
from .bm import whole_product
from .sided import Arraywise, OfShape, divide, zeros

__all__ = ["Fourier"]

Array = Any


def _half_plane(m: int, n: int) -> np.ndarray:
    """Modes ``u n + v`` of an m x n transform, one of each pair that are mirror images: their cosines agree."""
    u, v = np.divmod(np.arange(m * n), n)
    return np.flatnonzero(u * n + v <= (-u % m) * n + (-v % n))


@covers("P69")
@factorization
class Fourier(Arraywise, Multilinear, OfShape):
    """W_ij = sum_k c_k cos(2 pi (u_k i / m + v_k j / n)) / sqrt(m n): FourierFT.

    Parameters
    ----------
    values : array (..., K)
        c_k.
    modes : integer array (..., K)
        ``u_k n + v_k``, fixed; every batch element may have its own.

    Notes
    -----
    The real part of an orthonormal inverse DFT with K coefficients. Two modes that are mirror images have the
    same cosine, so only one of each pair is drawn; the published method draws from all, and loses parameters
    where it meets both. Its factor ``1 / (m n)`` instead of ``1 / sqrt(m n)`` is left to the scale.

    ``apply`` costs two FFTs per row and holds no basis; ``entries`` are in closed form; `from_product` takes
    the K modes with the largest coefficients, which is the nearest matrix, since cosines are orthogonal.
    The shape belongs to the form: ``Fourier.for_shape((m, n))`` is what a point is an instance of.
    Source: :cite:`gao2024fourierft`; section IV-D of :cite:`survey2026sp`.

    Examples
    --------
    >>> form = Fourier.for_shape((2, 2))
    >>> form(np.array([2.0]), np.array([1])).dense().tolist()
    [[1.0, -1.0], [1.0, -1.0]]
    """

    values: Array
    modes: Array

    ndims = (1, 1)
    spaces = (FLAT, FIXED)
    zeros = ("values",)
    universal = False

    @property
    def rank(self):
        return min(*self.shape, 2 * self.values.shape[-1])

    @classmethod
    def shapes(cls, shape, rank):
        most = len(_half_plane(*shape))
        if rank > most:
            raise ValueError(f"a {shape[0]} x {shape[1]} matrix has {most} cosine modes, got {rank}")
        return (rank,), (rank,)

    @classmethod
    def constants(cls, shape, rank, rng, batch):
        half = _half_plane(*shape)
        return {"modes": half[draw(rng, len(half), rank, batch)]}

    @classmethod
    def from_product(cls, left, right, rank=None):
        w = left @ xp.adjoint(right)
        form = cls.for_shape(w.shape[-2:])
        half = _half_plane(*w.shape[-2:])
        size = min(left.shape[-1], len(half)) if rank is None else rank
        backend = xp.namespace(w)
        index = beside(half, w)
        pulled = _cosine_transform(w)[..., index]
        # The energy that a mode takes is its product squared over its own square, 1/2 or 1.
        weights = 1.0 + _is_own_mirror(index, *w.shape[-2:])
        energy = abs(pulled) ** 2 / weights
        order = backend.argsort(-energy, -1)[..., :size]
        return form(gather(pulled, order) * 2.0 / gather(weights + 0 * energy, order), index[order])

    def product(self):
        return whole_product(self)

    def _waves(self) -> tuple[Array, Array]:
        """``u`` and ``v`` of every mode."""
        n = self.shape[1]
        return self.modes // n, self.modes % n

    def dense(self):
        m, n = self.shape
        if not _is_complex(self.values):
            return self._real_dense()
        grid = scatter(self.values, self.modes, m * n)
        grid = grid.reshape(*grid.shape[:-1], m, n)
        fft = xp.namespace(grid).fft
        return (fft.ifft2(grid, norm="ortho") + fft.fft2(grid, norm="ortho")) / 2

    def _real_dense(self) -> Array:
        """From half of the spectrum, in two steps, which libraries take faster than one over both axes.

        A mode in the other half is replaced by its mirror image, which has the same cosine.
        """
        (m, n), (u, v) = self.shape, self._waves()
        half = n // 2 + 1
        far = 1 * (v >= half)
        u, v = (u + far * (m - 2 * u)) % m, v + far * (n - 2 * v)
        # In the middle of the half, every mode stands for itself and its conjugate.
        weights = 1.0 / (1 + (v > 0) * (2 * v != n))
        grid = scatter(self.values * xp.asarray_like(weights, self.values), u * half + v, m * half)
        fft = xp.namespace(grid).fft
        grid = grid.reshape(*grid.shape[:-1], m, half)
        return fft.irfft(fft.ifft(grid, axis=-2, norm="ortho"), n, norm="ortho")

    def apply(self, x):
        m, (u, v) = self.shape[0], self._waves()
        values, fft = self.values[..., None, :], xp.namespace(x, self.values).fft
        up = fft.ifft(scatter(values * gather(fft.ifft(x, norm="ortho"), v), u, m), norm="ortho")
        if not (_is_complex(x) or _is_complex(values)):
            return up.real
        down = fft.fft(scatter(values * gather(fft.fft(x, norm="ortho"), v), u, m), norm="ortho")
        return (up + down) / 2

    def entries(self, rows, cols):
        (m, n), (u, v) = self.shape, self._waves()
        pairs = (rows, u, m), (cols, v, n)
        angles = sum(self._turns(wave[..., None, :] * places[:, None] % k, k) for places, wave, k in pairs)
        return (xp.namespace(self.values).cos(angles) * self.values[..., None, :]).sum(-1) / (m * n) ** 0.5

    def partial(self, index, g):
        if index == 1:
            return zeros(self.modes)
        if is_array(g):
            return gather(_cosine_transform(g), self.modes)
        return self._contracted(g)

    def _contracted(self, g: Any) -> Array:
        """Products of a sparse matrix or operator with the modes: ``cos(a + b) = cos a cos b - sin a sin b``."""
        (m, n), (u, v) = self.shape, self._waves()
        backend = xp.namespace(self.values)
        left, right = (
            self._turns(steps(k, self.values)[:, None] * w[..., None, :] % k, k) for k, w in ((m, u), (n, v))
        )
        cosines = backend.cos(left) * (g @ backend.cos(right))
        sines = backend.sin(left) * (g @ backend.sin(right))
        return (cosines - sines).sum(-2) / (m * n) ** 0.5

    def _turns(self, steps: Array, count: int) -> Array:
        """Angles of that many steps out of ``count`` on the circle, in the real type of the coefficients."""
        return xp.asarray_like(steps, abs(self.values)) * (2 * np.pi / count)

    def pullback(self, g):
        return type(self)(self.partial(0, g), zeros(self.modes))

    def _white(self, index, g, damping):
        weights = (1.0 + _is_own_mirror(self.modes, *self.shape)) / 2
        return divide(g, xp.asarray_like(weights, abs(g)), damping)


def _is_complex(a: Array) -> bool:
    return a.is_complex() if xp.is_torch(a) else a.dtype.kind == "c"


def _cosine_transform(w: Array) -> Array:
    """Products of a matrix with all cosine modes: (..., m n)."""
    fft = xp.namespace(w).fft
    if _is_complex(w):
        out = (fft.fft2(w, norm="ortho") + fft.ifft2(w, norm="ortho")) / 2
    else:
        out = fft.fft2(w, norm="ortho").real
    return out.reshape(*w.shape[:-2], -1)


def _is_own_mirror(modes: Array, m: int, n: int) -> Array:
    """Which modes are their own mirror image, whose cosine has norm 1 and not ``sqrt(1/2)``."""
    u, v = modes // n, modes % n
    return 1.0 * ((2 * u % m == 0) & (2 * v % n == 0))
