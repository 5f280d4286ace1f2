"""Products of reflections (HRA, ETHER) and their relaxation (ETHER+), block by block."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..constants import identity
from ..coverage import covers
from ..factors import Configured, factorization
from ..rearrange import Tiling
from .block import diagonal_products
from .rotation import FEW, Multiplicative, inverse, square_side
from .sided import divide

__all__ = ["EtherPlus", "Householder"]

Array = Any


def _blocks_of(n: int, count: int) -> int:
    if n % count:
        raise ValueError(f"{count} blocks must divide the side, got {n}")
    return n // count


def _rows(x: Array, blocks: Array, change: Any) -> Array:
    """Rows (..., k, n) plus ``change`` of their parts (..., count, k, b)."""
    count = blocks.shape[-3]
    parts = x.reshape(*x.shape[:-1], count, x.shape[-1] // count).swapaxes(-3, -2)
    out = (parts + change(parts)).swapaxes(-3, -2)
    return out.reshape(*out.shape[:-2], x.shape[-1])


def _spread(blocks: Array) -> Array:
    """Columns (..., k, b, r) of every block as those of the whole, (..., k b, k r), with zeros outside of the block."""
    count, b, r = blocks.shape[-3:]
    wide = blocks[..., None, :] * identity(count, blocks)[:, None, :, None]
    return wide.reshape(*wide.shape[:-4], count * b, count * r)


def _half_upper(a: Array) -> Array:
    """The strict upper triangle and half of the diagonal: r x r matrices."""
    triu = xp.namespace(a).triu
    return 0.5 * (triu(a) + triu(a, 1))


def _diagonal(a: Array) -> Array:
    triu = xp.namespace(a).triu
    return triu(a) - triu(a, 1)


@covers("P93", "P96")
@factorization
class Householder(Multiplicative, Configured):
    """P = H_1 H_2 ... H_r with reflections ``H_i = I - 2 u_i u_i^H / |u_i|^2``: HRA; block diagonal: ETHER.

    Parameters
    ----------
    vectors : array (..., k, n / k, r)
        The u_i of every block, as columns.

    Notes
    -----
    In the compact WY form ``P = I - U M^{-1} U^H``, where M is the strict upper triangle of ``U^H U`` and half of
    its diagonal: ``apply`` takes 2 n r products per row and keeps r numbers of it. The size of this form is the
    number r of reflections; `Householder` itself has one block, and ``Householder.of(k)`` has k, with r = 1 the
    form of ETHER. The parameters are n r. `identity` takes every vector twice, as HRA does; it needs an even r, and a
    single reflection, as in ETHER, is never the identity. ``whiten`` treats the reflections as independent, and is
    exact for one of them. Source: :cite:`yuan2024hra`, :cite:`bini2024ether`, whose formulas the surveys leave out.

    Examples
    --------
    >>> Householder(np.array([[[1.0], [0.0]]])).dense().tolist()
    [[-1.0, 0.0], [0.0, 1.0]]
    """

    vectors: Array

    ndims = (3,)

    @classmethod
    def of(cls, count: int) -> type[Householder]:
        """The form with so many blocks."""
        if int(count) != count or count < 1:
            raise ValueError(f"count must be a positive integer, got {count}")
        return cls.configured(f"Householder{int(count)}", int(count))

    @classmethod
    def identity(cls, n, size, rng, batch=()):
        if size % 2:
            raise ValueError(f"an odd number of reflections is never the identity, got {size}; take an even one")
        ((count, b, r),) = cls.shapes((n, n), size)
        return cls(np.repeat(rng.standard_normal((*batch, count, b, r // 2)), 2, -1))

    @property
    def shape(self):
        n = self.vectors.shape[-3] * self.vectors.shape[-2]
        return n, n

    @classmethod
    def shapes(cls, shape, rank):
        (count,) = cls.settings or (1,)
        return ((count, _blocks_of(square_side(shape), count), rank),)

    def _middle(self) -> Array:
        """M^{-1}, (..., k, r, r)."""
        return inverse(_half_upper(xp.gram(self.vectors)))

    def _paired(self) -> tuple[Array, Array]:
        """Columns V and a matrix K with ``P = I - V K V^H``, which is exactly I where the vectors come in equal pairs.

        With the differences d of the pairs, ``V = [u, d]`` and K is the inverse of ``N = T^H M T``, T the change of
        columns. The blocks of N are upper triangular, and N_dd vanishes with d, so that K is written with the Schur
        complement of N_du: its block of u and u is a product with N_dd.
        """
        if self.vectors.shape[-1] % 2:
            return self.vectors, self._middle()
        u, triu, cat = self.vectors[..., 0::2], xp.namespace(self.vectors).triu, xp.namespace(self.vectors).concatenate
        columns = cat((u, self.vectors[..., 1::2] - u), -1)
        k, gram = u.shape[-1], xp.gram(columns)
        uu, ud, du, dd = gram[..., :k, :k], gram[..., :k, k:], gram[..., k:, :k], gram[..., k:, k:]
        half = 0.5 * _diagonal(uu)
        first = inverse(triu(du, 1) - half)
        small = first @ (_half_upper(dd) - 0.5 * (_diagonal(ud) - _diagonal(du)))
        upper = _half_upper(uu)
        second = inverse(triu(ud) + half - upper @ small)
        other = -second @ upper @ first
        rows = cat((-small @ second, first - small @ other), -1), cat((second, other), -1)
        return columns, cat(rows, -2)

    def dense(self):
        eye = identity(self.shape[0], self.vectors)
        return self.apply(eye + 0 * self.vectors[..., 0, :1, :1]).mT

    def apply(self, x):
        v, middle = self._paired()
        return _rows(x, v, lambda parts: -((parts @ v.conj()) @ middle.mT) @ v.mT)

    def entries(self, rows, cols):
        b = self.vectors.shape[-2]
        left = self.vectors @ self._middle()
        pairs = left[..., rows // b, rows % b, :] * self.vectors[..., cols // b, cols % b, :].conj()
        return 1.0 * (rows == cols) - pairs.sum(-1) * (rows // b == cols // b)

    def _moved(self, direction):
        u, d, middle = self.vectors, direction.vectors, self._middle()
        cross = xp.adjoint(d) @ u
        inner = middle @ _half_upper(cross + xp.adjoint(cross)) @ middle

        def change(parts):
            thin, other = parts @ u.conj(), parts @ d.conj()
            first = (thin @ inner.mT - other @ middle.mT) @ u.mT
            return first - (thin @ middle.mT) @ d.mT - parts

        eye = identity(self.shape[0], u) + 0 * u[..., 0, :1, :1]
        return _rows(eye, u, change).mT

    def partial(self, index, g):
        u, middle = self.vectors, self._middle()
        count, b, _ = u.shape[-3:]
        tiling = Tiling(count, count, b, b)
        gu, hu = diagonal_products(g, u, tiling), diagonal_products(xp.adjoint(g), u, tiling)
        outer = xp.adjoint(middle) @ (xp.adjoint(u) @ gu) @ xp.adjoint(middle)
        inner = _half_upper(outer)
        return u @ (inner + xp.adjoint(inner)) - gu @ xp.adjoint(middle) - hu @ middle

    def pullback(self, g):
        return type(self)(self.partial(0, g))

    def whiten(self, grad, damping=0.0):
        squares = abs(self.vectors * self.vectors.conj()).sum(-2)[..., None, :]
        return type(self)(divide(grad.vectors, 8.0 / squares, damping, ndim=3))


@covers("P93")
@factorization
class EtherPlus(Multiplicative):
    """``P = I - u u^H / |u|^2 + v v^H / |v|^2`` in every diagonal block: one side of ETHER+.

    Parameters
    ----------
    minus, plus : arrays (..., k, n / k)
        u and v of every block.

    Notes
    -----
    A reflection relaxed to the identity at ``u = v``; no longer orthogonal. The size of this form is the number k
    of blocks, and the parameters are 2 n, whatever k. The published adapter multiplies the weight from both sides.
    Source: :cite:`bini2024ether`.

    Examples
    --------
    >>> EtherPlus(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])).dense().tolist()
    [[0.0, 0.0], [0.0, 2.0]]
    """

    minus: Array
    plus: Array

    ndims = (2, 2)

    @classmethod
    def identity(cls, n, size, rng, batch=()):
        vectors = rng.standard_normal((*batch, *cls.shapes((n, n), size)[0]))
        return cls(vectors, vectors.copy())

    @property
    def shape(self):
        n = self.minus.shape[-2] * self.minus.shape[-1]
        return n, n

    @classmethod
    def shapes(cls, shape, rank):
        core = rank, _blocks_of(square_side(shape), rank)
        return core, core

    def _columns(self) -> list[tuple[float, Array, Array]]:
        """Sign, vector as a column and its squared length, for both vectors."""
        columns = [a[..., :, None] for a in self.arrays()]
        squares = [abs(a * a.conj()).sum((-2, -1))[..., None, None] for a in columns]
        return list(zip((-1.0, 1.0), columns, squares, strict=True))

    @property
    def near_identity(self):
        return 2 * self.minus.shape[-2] <= FEW

    def change(self):
        (_, u, below), (_, v, above) = self._columns()
        cat, scaled = xp.namespace(u).concatenate, v / above
        return _spread(cat((u, v - u), -1)), _spread(cat((scaled - u / below, scaled), -1))

    def dense(self):
        eye = identity(self.shape[0], self.minus)
        return self.apply(eye + 0 * self.minus[..., :1, :1]).mT

    def apply(self, x):
        terms = self._columns()

        def change(parts):
            return sum((sign / square) * ((parts @ u.conj()) @ u.mT) for sign, u, square in terms)

        return _rows(x, terms[0][1], change)

    def entries(self, rows, cols):
        b = self.minus.shape[-1]
        total = 0.0
        for sign, u, square in self._columns():
            line, own = u[..., 0].reshape(*u.shape[:-3], -1), square[..., 0, 0][..., rows // b]
            total = total + sign * line[..., rows] * line[..., cols].conj() / own
        return 1.0 * (rows == cols) + total * (rows // b == cols // b)

    def _moved(self, direction):
        moves = [d[..., :, None] for d in direction.arrays()]

        def change(parts):
            total = -parts
            for (sign, u, square), d in zip(self._columns(), moves, strict=True):
                slope = 2 * _real(xp.adjoint(u) @ d) / square
                thin = parts @ u.conj()
                total = total + (sign / square) * (thin @ d.mT + (parts @ d.conj()) @ u.mT - slope * (thin @ u.mT))
            return total

        first = self.minus[..., :, None]
        eye = identity(self.shape[0], first) + 0 * self.minus[..., :1, :1]
        return _rows(eye, first, change).mT

    def partial(self, index, g):
        sign, u, square = self._columns()[index]
        count, b = self.minus.shape[-2:]
        tiling = Tiling(count, count, b, b)
        both = diagonal_products(g, u, tiling) + diagonal_products(xp.adjoint(g), u, tiling)
        along = _real(xp.adjoint(u) @ both) / square
        return (sign / square * (both - along * u))[..., 0]

    def pullback(self, g):
        return type(self)(self.partial(0, g), self.partial(1, g))

    def whiten(self, grad, damping=0.0):
        triples = zip(self._columns(), grad.arrays(), strict=True)
        return type(self)(*[divide(g, 2.0 / square[..., 0], damping, ndim=2) for (_, _, square), g in triples])


def _real(a: Array) -> Array:
    return xp.namespace(a).real(a)
