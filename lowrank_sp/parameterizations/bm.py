"""Burer-Monteiro forms: a product of two thin factors, and its symmetric positive semidefinite case."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import kernels, xp
from ..constants import identity
from ..coverage import covers
from ..factors import ByFactor, Gauged, MatrixFactors, Multilinear, factorization
from .outer import Outer

__all__ = ["BurerMonteiro", "SymmetricBurerMonteiro"]

Array = Any

# Entries are sampled in blocks, so that the gathered rows stay in cache and memory stays that of the samples.
BLOCK = 8192


def sampled_product(left: Array, right: Array, rows: Array, cols: Array) -> Array:
    """``sum_k left[..., rows, k] conj(right[..., cols, k])``, an array (..., N), in blocks of samples."""
    if kernels.available(rows.shape[0], left.shape[-1], left, right):
        return kernels.sampled(left, right, rows, cols)
    backend = xp.namespace(left, right)
    if backend is np:
        out = np.empty((*left.shape[:-2], rows.shape[0]), dtype=np.result_type(left, right))
        for start in range(0, rows.shape[0], BLOCK):
            part = slice(start, start + BLOCK)
            out[..., part] = _pairwise(left.take(rows[part], -2), right.take(cols[part], -2))
        return out
    size = BLOCK if left.device.type == "cpu" else 1 << 22
    blocks = [
        _pairwise(left[..., rows[s : s + size], :], right[..., cols[s : s + size], :])
        for s in range(0, rows.shape[0], size)
    ]
    return backend.cat(blocks, -1)


def _pairwise(a: Array, b: Array) -> Array:
    if type(a) is np.ndarray:
        return np.einsum("...nk,...nk->...n", a, b.conj())
    return (a * b.conj()).sum(-1)


@covers("P01")
@factorization
class BurerMonteiro(Multilinear, Outer, Gauged):
    """W = X Y^H, the factorization of Burer and Monteiro; LoRA without its scale.

    Parameters
    ----------
    left : array (..., m, r)
        X.
    right : array (..., n, r)
        Y. For real data Y^H is the Y^T of the literature.

    Notes
    -----
    The gauge group is GL(r): ``(X Q, Y Q^{-H})`` is the same matrix for every invertible ``Q``.
    Source: :cite:`burer2003nonlinear`; as an adapter :cite:`hu2022lora`.

    Examples
    --------
    >>> import numpy as np
    >>> x = BurerMonteiro(np.ones((3, 1)), np.ones((2, 1)))
    >>> x.dense().tolist()
    [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """

    left: Array
    right: Array

    thin = True

    @property
    def rank(self):
        return self.left.shape[-1]

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (shape[1], rank)

    @classmethod
    def from_product(cls, left, right, rank=None):
        return cls(*resized(left, right, rank))

    def product(self):
        return self.left, self.right

    def dense(self):
        return self.left @ xp.adjoint(self.right)

    def apply(self, x):
        return (x @ self.right.conj()) @ self.left.mT

    def entries(self, rows, cols):
        return sampled_product(self.left, self.right, rows, cols)

    def partial(self, index, g):
        return g @ self.right if index == 0 else xp.adjoint(g) @ self.left

    def pullback(self, g):
        return BurerMonteiro(g @ self.right, xp.adjoint(g) @ self.left)

    def whiten(self, grad, damping=0.0):
        return BurerMonteiro(
            xp.divide_psd(grad.left, xp.gram(self.right), damping),
            xp.divide_psd(grad.right, xp.gram(self.left), damping),
        )

    def gauge(self, q):
        return BurerMonteiro(self.left @ q, self.right @ xp.adjoint(xp.namespace(q).linalg.inv(q)))

    def random_gauge(self, rng):
        r = self.rank
        return xp.asarray_like(np.eye(r) + 0.3 * rng.standard_normal((*self.batch_shape, r, r)), self.left)

    def __matmul__(self, x: Array) -> Array:
        return self.left @ (xp.adjoint(self.right) @ x)

    def adjoint(self) -> BurerMonteiro:
        """W^H, so that a low-rank matrix can stand where a gradient is expected."""
        return BurerMonteiro(self.right, self.left)

    def balanced(self) -> BurerMonteiro:
        """The same matrix with equal Gram matrices: singular vectors times root singular values."""
        u, s, v = thin_svd(self.left, self.right)
        root = (s**0.5)[..., None, :]
        return BurerMonteiro(u * root, v * root)


def thin_svd(left: Array, right: Array) -> tuple[Array, Array, Array]:
    """``(U, s, V)`` with ``left right^H = U diag(s) V^H``, from two QR factorizations and an r x r SVD."""
    backend = xp.namespace(left, right)
    ql, rl = backend.linalg.qr(left)
    qr, rr = backend.linalg.qr(right)
    u, s, vh = backend.linalg.svd(rl @ xp.adjoint(rr), full_matrices=False)
    return ql @ u, s, qr @ xp.adjoint(vh)


def resized(left: Array, right: Array, rank: int | None) -> tuple[Array, Array]:
    """Factors with ``rank`` columns: the best approximation if there were more, zero columns if fewer."""
    missing = 0 if rank is None else rank - left.shape[-1]
    if missing == 0:
        return left, right
    if missing > 0:
        cat, zeros = xp.namespace(left, right).concatenate, xp.namespace(left).zeros_like
        columns = [zeros(a[..., :1]) for a in (left, right)]
        return cat((left, *[columns[0]] * missing), -1), cat((right, *[columns[1]] * missing), -1)
    u, s, v = thin_svd(left, right)
    root = (s[..., :rank] ** 0.5)[..., None, :]
    return u[..., :rank] * root, v[..., :rank] * root


def whole_product(point: MatrixFactors) -> tuple[Array, Array]:
    """``(W, I)`` or ``(I, W^H)``: the product of a matrix whose rank may be full."""
    dense = point.dense()
    m, n = dense.shape[-2:]
    backend = xp.namespace(dense)
    eye = identity(min(m, n), dense) + backend.zeros_like(dense[..., :1, :1])
    return (dense, eye) if n <= m else (eye, xp.adjoint(dense))


@factorization
class SymmetricBurerMonteiro(ByFactor, MatrixFactors, Gauged):
    """W = X X^H, the symmetric (Hermitian) positive semidefinite form.

    Parameters
    ----------
    factor : array (..., n, r)
        X.

    Notes
    -----
    The gauge group is U(r). ``whiten`` divides by twice the Gram matrix: the two occurrences of X are
    treated as the independent factors of `BurerMonteiro`, which gives the symmetric ScaledGD
    ``X - eta (X X^H - A) X (X^H X)^{-1}`` with ``eta`` the step size (the Babylonian square root at 1/2;
    :cite:`li2024nystrom`).
    """

    factor: Array

    universal = False
    thin = True
    zeros = ()

    @property
    def shape(self):
        return self.factor.shape[-2], self.factor.shape[-2]

    @property
    def rank(self):
        return self.factor.shape[-1]

    @classmethod
    def shapes(cls, shape, rank):
        if shape[0] != shape[1]:
            raise ValueError(f"SymmetricBurerMonteiro needs a square matrix, got shape {tuple(shape)}")
        return ((shape[0], rank),)

    @classmethod
    def from_product(cls, left, right, rank=None):
        """The nearest positive semidefinite matrix of rank r: eigenvalues of the Hermitian part, clamped at 0."""
        backend = xp.namespace(left, right)
        r = left.shape[-1] if rank is None else rank
        q, _ = backend.linalg.qr(backend.concatenate((left, right), -1))
        core = (xp.adjoint(q) @ left) @ (xp.adjoint(right) @ q)
        values, vectors = backend.linalg.eigh((core + xp.adjoint(core)) / 2)
        top = backend.maximum(values[..., -r:], 0 * values[..., -r:])
        return cls(q @ (vectors[..., :, -r:] * (top**0.5)[..., None, :]))

    def product(self):
        return self.factor, self.factor

    def dense(self):
        return self.factor @ xp.adjoint(self.factor)

    def apply(self, x):
        return (x @ self.factor.conj()) @ self.factor.mT

    def entries(self, rows, cols):
        return sampled_product(self.factor, self.factor, rows, cols)

    def partial(self, index, g):
        return g @ self.factor + xp.adjoint(g) @ self.factor

    def pullback(self, g):
        return SymmetricBurerMonteiro(self.partial(0, g))

    def whiten(self, grad, damping=0.0):
        return SymmetricBurerMonteiro(xp.divide_psd(grad.factor, 2 * xp.gram(self.factor), damping))

    def expansion(self, direction, wrt):
        x, d = self.factor, direction.factor
        return [[BurerMonteiro(d, x), BurerMonteiro(x, d)], [BurerMonteiro(d, d)]]

    def gauge(self, q):
        return SymmetricBurerMonteiro(self.factor @ q)

    def random_gauge(self, rng):
        r = self.rank
        return xp.asarray_like(xp.orthonormalize(rng.standard_normal((*self.batch_shape, r, r))), self.factor)
