"""Linear measurement maps of matrices: dense stacks, wrapped operators, and two fast random ensembles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from .. import kernels, xp
from ..coverage import covers
from ..factors import MatrixFactors, sum_dense
from .checks import LinearMap, as_data, check_shape
from .linear_maps import as_linear_map, warn_unlike_adjoint

__all__ = [
    "DenseEnsemble",
    "Ensemble",
    "MaskedEnsemble",
    "QuadraticEnsemble",
    "RankOneEnsemble",
    "SubsampledOrthogonal",
    "WrappedOperator",
    "as_ensemble",
]

Array = Any

# Numbers of a block of stored matrices that stays in cache while it meets several vectors.
CACHED = 1 << 16
# Numbers of stored matrices from which passes over them are what costs, and worth a compiled loop.
LARGE = 1 << 21


class Ensemble(ABC):
    """A linear map from matrices of ``shape`` to ``count`` numbers, and its adjoint."""

    shape: tuple[int, int]
    count: int
    isotropic: ClassVar[bool] = False

    @abstractmethod
    def measure(self, sums: list[list[MatrixFactors]]) -> list[Array]:
        """A of the sum of the points in each group: arrays (..., count)."""

    @abstractmethod
    def adjoint(self, y: Array) -> Any:
        """``A^* y``: an array (..., m, n), or anything that multiplies thin matrices."""

    @abstractmethod
    def like(self) -> Array:
        """An array with the library, device and floating type of the map."""

    def surrogate(self, y: Array) -> Any:
        """A first guess of W from ``y = A(W)``, in direction if not in size: ``A^* y``."""
        return self.adjoint(y)

    def traced(self, sums: list[list[MatrixFactors]], mask: Array | None = None) -> list[tuple[Array, Array]] | None:
        """A of the sum of every group and ``A^*`` of that, where both together are cheaper; None elsewhere.

        With a mask (N,), of the measurements under it.
        """
        return None

    def as_linear_operator(self) -> Any:
        """This map as a scipy ``LinearOperator`` on ``vec(W)`` in C order (NumPy only)."""
        from scipy.sparse.linalg import LinearOperator

        m, n = self.shape

        def matvec(v):
            w = np.asarray(v).reshape(m, n)
            return self.measure([[_Dense(w)]])[0]

        def rmatvec(y):
            g = self.adjoint(np.asarray(y).reshape(-1))
            return (g if isinstance(g, np.ndarray) else g @ np.eye(n)).reshape(-1)

        return LinearOperator((self.count, m * n), matvec=matvec, rmatvec=rmatvec, dtype=self.like().dtype)


class _Dense:
    """A full matrix where an ensemble expects factors."""

    def __init__(self, matrix: Array):
        self.matrix = matrix

    def dense(self) -> Array:
        return self.matrix

    def apply(self, x: Array) -> Array:
        return x @ self.matrix.mT

    def product(self) -> tuple[Array, Array]:
        return self.matrix, np.eye(self.matrix.shape[-1], dtype=self.matrix.dtype)


def _stacked(matrices: list[Array]) -> Array:
    """Matrices of several groups as rows (groups, ..., m n), so that one pass over the map serves all."""
    return xp.namespace(matrices[0]).stack([w.reshape(*w.shape[:-2], -1) for w in matrices])


class DenseEnsemble(Ensemble):
    """``y_i = <M_i, W>`` with stored matrices, an array (N, m, n); one matrix product per application.

    Real matrices, or the conjugate inner product ``sum conj(M_i) W`` for complex ones.
    """

    def __init__(self, matrices: Array):
        matrices = as_data(matrices, "operator", 3)
        if matrices.ndim != 3:
            raise ValueError(f"operator must be (N, m, n), got shape {tuple(matrices.shape)}")
        self.count = int(matrices.shape[0])
        self.shape = (int(matrices.shape[1]), int(matrices.shape[2]))
        self.rows = matrices.reshape(self.count, -1)

    def measure(self, sums):
        matrices = [sum_dense(points) for points in sums]
        if type(matrices[0]) is np.ndarray and matrices[0].ndim == 2:
            return self._products([w.reshape(-1) for w in matrices])
        return list(_stacked(matrices) @ self.rows.conj().mT)

    def _products(self, vectors: list[np.ndarray]) -> list[np.ndarray]:
        """All of them in one pass over the matrices, which memory limits: matrix-vector products of blocks in cache."""
        step = max(1, CACHED // self.rows.shape[1])
        if len(vectors) == 1 or self.count <= step:
            return [self.rows.conj() @ v for v in vectors]
        out = [np.empty(self.count, np.result_type(self.rows, v)) for v in vectors]
        for start in range(0, self.count, step):
            block = self.rows[start : start + step].conj()
            for v, image in zip(vectors, out, strict=True):
                image[start : start + step] = block @ v
        return out

    def adjoint(self, y):
        return (y @ self.rows).reshape(*y.shape[:-1], *self.shape)

    def traced(self, sums, mask=None):
        """Of two real matrices in one pass over stored ones that the cache does not hold."""
        size = self.count * self.shape[0] * self.shape[1]
        if len(sums) != 2 or size < LARGE or not kernels.available(size, 1, self.rows):
            return None
        vectors = [sum_dense(points).reshape(-1) for points in sums]
        if not kernels.available(size, 1, self.rows, *vectors) or vectors[0].size * self.count != size:
            return None
        images, backs = kernels.back_and_forth(self.rows, *vectors, None if mask is None else np.flatnonzero(mask))
        return list(zip(images, backs.reshape(-1, *self.shape), strict=True))

    def like(self):
        return self.rows[:1]


class WrappedOperator(Ensemble):
    """Any scipy or PyLops ``LinearOperator`` on ``vec(W)`` in C order.

    Made with a dot test, of one application of the operator and one of its adjoint; a failure is a warning.
    """

    def __init__(self, operator: Any, shape: tuple[int, int]):
        self.shape = shape
        if operator.shape[1] != shape[0] * shape[1]:
            raise ValueError(
                f"operator acts on vectors of length {operator.shape[1]}, but shape {shape} has "
                f"{shape[0] * shape[1]} entries; it must act on vec(W) in C order"
            )
        self.operator, self.count = operator, int(operator.shape[0])
        warn_unlike_adjoint(operator)

    def measure(self, sums):
        return [
            self._map(w.reshape(*w.shape[:-2], -1), self.operator.matvec)
            for w in [sum_dense(points) for points in sums]
        ]

    def adjoint(self, y):
        return self._map(y, self.operator.rmatvec).reshape(*y.shape[:-1], *self.shape)

    def _map(self, rows: Array, function: Any) -> Array:
        if rows.ndim == 1:
            return np.asarray(function(rows))
        flat = [np.asarray(function(row)) for row in rows.reshape(-1, rows.shape[-1])]
        return np.stack(flat).reshape(*rows.shape[:-1], -1)

    def like(self):
        return np.zeros(1, dtype=np.result_type(self.operator.dtype or np.float64, np.float32))


class MaskedEnsemble(Ensemble):
    """Some of the measurements of a map, the others zero: no copy of what the map stores.

    Parameters
    ----------
    operator : Ensemble
    mask : boolean array (N,)
    """

    def __init__(self, operator: Ensemble, mask: Array):
        self.operator, self.mask = operator, mask
        self.shape, self.count = operator.shape, operator.count

    def measure(self, sums):
        return [self.mask * y for y in self.operator.measure(sums)]

    def adjoint(self, y):
        return self.operator.adjoint(self.mask * y)

    def surrogate(self, y):
        return self.operator.surrogate(self.mask * y)

    def traced(self, sums, mask=None):
        return self.operator.traced(sums, self.mask if mask is None else self.mask & mask)

    def like(self):
        return self.operator.like()


class RankOneEnsemble(Ensemble):
    """``y_i = a_i^T W b_i``: Gaussian measurements of rank one, ``O(N (m + n))`` storage.

    Parameters
    ----------
    left : array (N, m)
        The ``a_i``; scale them so that the measurements have the size you want.
    right : array (N, n)
        The ``b_i``.
    """

    isotropic = True

    def __init__(self, left: Array, right: Array):
        self.left, self.right = as_data(left, "left", 2), as_data(right, "right", 2)
        if self.left.shape[0] != self.right.shape[0]:
            raise ValueError(
                f"left and right must hold as many vectors, got {self.left.shape[0]} and {self.right.shape[0]}"
            )
        self.count = int(self.left.shape[0])
        self.shape = (int(self.left.shape[1]), int(self.right.shape[1]))

    def measure(self, sums):
        return [sum((self.left * p.apply(self.right)).sum(-1) for p in points) for points in sums]

    def adjoint(self, y):
        return _RankOneSum(y, self.left, self.right)

    def like(self):
        return self.left


class _RankOneSum:
    """``sum_i y_i conj(a_i) conj(b_i)^T - shift I`` as an operator."""

    def __init__(self, y: Array, left: Array, right: Array, shift: Any = None):
        self.y, self.left, self.right, self.shift = y, left, right, shift

    def adjoint(self) -> _RankOneSum:
        return _RankOneSum(self.y.conj(), self.right.conj(), self.left.conj(), self.shift)

    def __matmul__(self, x: Array) -> Array:
        total = self.left.mT.conj() @ (self.y[..., None] * (self.right.conj() @ x))
        return total if self.shift is None else total - xp.expand(self.shift, 2) * x


@covers("S06")
class QuadraticEnsemble(Ensemble):
    """``y_i = a_i^H W a_i``, that is ``||X^H a_i||^2`` for ``W = X X^H``: quadratic sensing and phase retrieval.

    Of a W that is not Hermitian the real part is measured; the measurements are real for complex vectors too.
    Use it with `SymmetricBurerMonteiro`; for one column X is the signal of phase retrieval, up to its sign or
    phase.

    Parameters
    ----------
    vectors : array (N, n)
        The ``a_i``, real or complex.

    Notes
    -----
    The surrogate is the truncated spectral one: values above ``CUT`` times their mean are dropped, then
    ``(1/N) sum_i y_i (a_i a_i^H - I)``, whose mean for standard Gaussian vectors is W in the complex and 2 W in
    the real case. Source: :cite:`chen2015truncated`, :cite:`candes2015wirtinger`.
    """

    isotropic = False
    CUT: ClassVar[float] = 9.0

    def __init__(self, vectors: Array):
        self.vectors = as_data(vectors, "vectors", 2)
        if self.vectors.ndim != 2:
            raise ValueError(f"vectors must be (N, n), got shape {tuple(self.vectors.shape)}")
        self.count, n = (int(k) for k in self.vectors.shape)
        self.shape = (n, n)

    def measure(self, sums):
        return [sum(self._one(p) for p in points) for points in sums]

    def _one(self, point: Any) -> Array:
        left, right = point.product()
        rows = self.vectors.conj()
        image = rows @ left
        other = image if right is left else rows @ right
        return (image * other.conj()).sum(-1).real

    def adjoint(self, y):
        return _RankOneSum(y, self.vectors.conj(), self.vectors)

    def surrogate(self, y):
        mean = y.mean(-1)[..., None]
        kept = y * (abs(y) <= self.CUT * abs(mean)) / self.count
        return _RankOneSum(kept, self.vectors.conj(), self.vectors, kept.sum(-1))

    def like(self):
        return self.vectors


class SubsampledOrthogonal(Ensemble):
    """Random signs, an orthonormal real Fourier transform, and a random subset: ``O(m n log(m n))``.

    Scaled so that ``||A(W)||`` has the size of ``||W||`` on average, as an isometry would.
    Source: the structured random maps of :cite:`tropp2011srht`, with the real Fourier basis.

    Parameters
    ----------
    signs : array (m n,)
        Plus and minus ones.
    kept : integer array (N,)
        Which transform coefficients are measured.
    shape : (m, n)
    """

    isotropic = True

    def __init__(self, signs: Array, kept: Array, shape: tuple[int, int]):
        self.shape = check_shape(shape)
        size = self.shape[0] * self.shape[1]
        if signs.shape != (size,):
            raise ValueError(f"signs must have shape ({size},), got {tuple(signs.shape)}")
        self.signs, self.kept, self.size = signs, kept, size
        self.count = int(kept.shape[0])
        self.gain = (size / self.count) ** 0.5

    def measure(self, sums):
        stacked = _stacked([sum_dense(points) for points in sums])
        return list(self.gain * self._transform(stacked * self.signs)[..., self.kept])

    def adjoint(self, y):
        full = (
            y.new_zeros((*y.shape[:-1], self.size)) if xp.is_torch(y) else np.zeros((*y.shape[:-1], self.size), y.dtype)
        )
        full[..., self.kept] = y
        w = self.gain * self._inverse(full) * self.signs
        return w.reshape(*y.shape[:-1], *self.shape)

    def like(self):
        return self.signs

    def _transform(self, v: Array) -> Array:
        """Orthonormal real Fourier coefficients: constant, cosines, sines."""
        backend, d = xp.namespace(v), self.size
        spectrum = backend.fft.rfft(v) / d**0.5
        middle = spectrum[..., 1 : (d + 1) // 2] * 2**0.5
        parts = [spectrum[..., :1].real, middle.real, middle.imag]
        if d % 2 == 0:
            parts.insert(1, spectrum[..., -1:].real)
        return backend.concatenate(parts, -1)

    def _inverse(self, c: Array) -> Array:
        backend, d = xp.namespace(c), self.size
        even, half = 1 - d % 2, (d + 1) // 2 - 1
        start = 1 + even
        middle = (c[..., start : start + half] + 1j * c[..., start + half :]) / 2**0.5
        parts = [c[..., :1] + 0j, middle]
        if even:
            parts.append(c[..., 1:2] + 0j)
        return backend.fft.irfft(backend.concatenate(parts, -1), n=d) * d**0.5


def as_ensemble(operator: Any, shape: tuple[int, int]) -> Ensemble:
    """An ensemble from an ensemble, an array (N, m, n) or (N, m n), a scipy sparse matrix, or a linear operator."""
    operator = as_linear_map(operator)
    if isinstance(operator, Ensemble):
        ensemble = operator
    elif isinstance(operator, LinearMap):
        ensemble = WrappedOperator(operator, shape)
    else:
        matrices = as_data(operator, "operator", 2)
        if matrices.ndim == 2:
            if matrices.shape[1] != shape[0] * shape[1]:
                raise ValueError(
                    f"operator has rows of length {matrices.shape[1]}, but shape {shape} has "
                    f"{shape[0] * shape[1]} entries"
                )
            matrices = matrices.reshape(-1, *shape)
        ensemble = DenseEnsemble(matrices)
    if ensemble.shape != shape:
        raise ValueError(f"operator acts on {ensemble.shape} matrices, but shape is {shape}")
    return ensemble
