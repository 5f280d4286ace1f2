"""A local pair of factors plus shared pairs that gates or Kronecker products bring to the size of the layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np

from .. import xp
from ..coverage import covers
from ..factors import ByFactor, Configured, Multilinear, factorization, sum_dense
from .bm import BurerMonteiro, resized
from .layered import along_weights, remainder
from .sided import Sided, Thin, Unconvertible, divide

__all__ = ["BSLoRAGate", "BSLoRAKronecker"]

Array = Any


# what becomes of a shared pair ----------------------------------------------------------------------------------
@factorization
class _Gated(Sided, Multilinear, Unconvertible):
    """W = u (v^T P Q^H w) z^H: a shared pair seen through gates of width one, which leave a matrix of rank one."""

    rows: Array  # u, (..., m)
    cols: Array  # z, (..., n)
    tall: Array  # v, (..., M)
    wide: Array  # w, (..., N)
    left: Array  # P, (..., M, r)
    right: Array  # Q, (..., N, r)

    ndims = (1, 1, 1, 1, 2, 2)
    sides = (0, 1, 0, 0, 0, 0)

    @property
    def shape(self):
        return self.rows.shape[-1], self.cols.shape[-1]

    @property
    def rank(self):
        return 1

    @classmethod
    def shapes(cls, shape, rank):
        (m, n) = shape
        return (m,), (n,), (m,), (n,), (m, rank), (n, rank)

    def _between(self) -> tuple[Array, Array, Array]:
        """``P^T v``, ``Q^H w`` and their product, the scalar in the middle."""
        a = (self.left.mT @ self.tall[..., None])[..., 0]
        b = (xp.adjoint(self.right) @ self.wide[..., None])[..., 0]
        return a, b, (a * b).sum(-1)[..., None]

    def product(self):
        return (self._between()[2] * self.rows)[..., None], self.cols[..., None]

    def _coefficients(self, index: int) -> Array:
        """What the scalar, or for Q its conjugate, multiplies in an array it is linear in."""
        a, b, _ = self._between()
        if index == 2:
            return (self.left @ b[..., None])[..., 0]
        if index == 3:
            return (self.right.conj() @ a[..., None])[..., 0]
        if index == 4:
            return self.tall[..., :, None] * b[..., None, :]
        return (self.wide[..., :, None] * a[..., None, :]).conj()

    def _chained(self, index, cotangent):
        along = cotangent[..., 0]
        if index == 0:
            return self._between()[2].conj() * along
        if index == 1:
            return along
        scalar = (self.rows.conj() * along).sum(-1)
        scalar = scalar.conj() if index == 5 else scalar
        return xp.expand(scalar, self.ndims[index]) * self._coefficients(index).conj()

    def _white(self, index, g, damping):
        u, z = ((abs(a) ** 2).sum(-1) for a in (self.rows, self.cols))
        c = abs(self._between()[2][..., 0]) ** 2
        if index < 2:
            return divide(g, ((c * z) if index == 0 else (c * u))[..., None], damping)
        weights = self._coefficients(index)
        flat = [a.reshape(*a.shape[: a.ndim - self.ndims[index]], -1) for a in (weights, g)]
        along, rest, square = along_weights(flat[1][..., None, None], flat[0])
        white = divide(along, xp.expand(u * z, 2) * square, damping, 2)
        total = flat[0].conj()[..., None, None] * white[..., None, :, :] + remainder(rest, damping)
        return total.reshape(g.shape)


@factorization
class _Stretched(Sided, Multilinear, Unconvertible):
    """W = (a (x) P) (b (x) Q)^H: a shared pair in every place of a grid, with weights ``a b^H``."""

    rows: Array  # a, (..., m / M)
    cols: Array  # b, (..., n / N)
    left: Array  # P, (..., M, r)
    right: Array  # Q, (..., N, r)

    ndims = (1, 1, 2, 2)
    sides = (0, 1, 0, 1)

    @property
    def shape(self):
        return self.rows.shape[-1] * self.left.shape[-2], self.cols.shape[-1] * self.right.shape[-2]

    @property
    def rank(self):
        return min(self.left.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (1,), (1,), (shape[0], rank), (shape[1], rank)

    @staticmethod
    def _tall(weights: Array, factor: Array) -> Array:
        tall = weights[..., :, None, None] * factor[..., None, :, :]
        return tall.reshape(*tall.shape[:-3], -1, factor.shape[-1])

    def product(self):
        return self._tall(self.rows, self.left), self._tall(self.cols, self.right)

    def _chained(self, index, cotangent):
        weights, factor = (self.rows, self.left) if index in (0, 2) else (self.cols, self.right)
        split = cotangent.reshape(*cotangent.shape[:-2], weights.shape[-1], *factor.shape[-2:])
        if index < 2:
            return (factor.conj()[..., None, :, :] * split).sum((-2, -1))
        return (weights.conj()[..., :, None, None] * split).sum(-3)

    def _white(self, index, g, damping):
        side = index % 2
        weights, factor = (self.rows, self.left) if side == 0 else (self.cols, self.right)
        other = xp.gram(self.product()[1 - side])
        if index < 2:
            return divide(g, ((factor @ other) * factor.conj()).sum((-2, -1)).real[..., None], damping)
        return xp.divide_psd(g, xp.expand((abs(weights) ** 2).sum(-1), 2) * other, damping)


# their sums -------------------------------------------------------------------------------------------------------
class _LocalPlusShared(ByFactor, Thin, Configured):
    """A local pair plus what two shared pairs become; no array is in two of the terms."""

    term: ClassVar[type[Any]]

    @classmethod
    def of(cls, rows: int, cols: int) -> type[Self]:
        """The form whose shared factors have so many rows and columns of W."""
        if int(rows) != rows or int(cols) != cols or min(rows, cols) < 1:
            raise ValueError(f"rows and cols must be positive integers, got {rows}, {cols}")
        return cls.configured(f"{cls._base().__name__}{int(rows)}x{int(cols)}", int(rows), int(cols))

    def _terms(self) -> Iterator[tuple[Any, range]]:
        """Points whose images add up, each with the numbers of its arrays."""
        arrays, count = self.arrays(), len(self.term.names)
        yield BurerMonteiro(*arrays[:2]), range(2)
        for first in (2, 2 + count):
            places = range(first, first + count)
            yield self.term(*[arrays[i] for i in places]), places

    @property
    def shape(self):
        left, right = self.arrays()[:2]
        return left.shape[-2], right.shape[-2]

    @property
    def rank(self):
        return min(sum(point.rank for point, _ in self._terms()), *self.shape)

    def product(self):
        sides = zip(*(point.product() for point, _ in self._terms()), strict=True)
        return tuple(xp.namespace(*side).concatenate(side, -1) for side in sides)

    def dense(self):
        return sum_dense([point for point, _ in self._terms()])

    def entries(self, rows, cols):
        return sum(point.entries(rows, cols) for point, _ in self._terms())

    def partial(self, index, g):
        return next(point.partial(places.index(index), g) for point, places in self._terms() if index in places)

    def pullback(self, g):
        return type(self)(*[a for point, _ in self._terms() for a in point.pullback(g).arrays()])

    def whiten(self, grad, damping=0.0):
        pairs = zip(self._terms(), grad._terms(), strict=True)
        return type(self)(*[a for (point, _), (g, _) in pairs for a in point.whiten(g, damping).arrays()])

    def expansion(self, direction, wrt):
        orders: list[list[Any]] = []
        for (point, places), (move, _) in zip(self._terms(), direction._terms(), strict=True):
            for k, points in enumerate(point.expansion(move, [places.index(i) for i in wrt if i in places])):
                orders[k : k + 1] = [[*(orders[k] if k < len(orders) else ()), *points]]
        return orders

    @classmethod
    def from_product(cls, left, right, rank=None):
        """The local pair; the shared ones have no columns to add."""
        left, right = resized(left, right, rank)
        shapes = cls.shapes((left.shape[-2], right.shape[-2]), left.shape[-1])
        one = 0 * left[..., 0, 0] + 1
        shared = []
        for name, shape in zip(cls.names[2:], shapes[2:], strict=True):
            shared.append((name not in cls.zeros) * xp.expand(one, len(shape)) * xp.asarray_like(np.ones(shape), left))
        return cls(left, right, *shared)


@covers("P64")
@factorization
class BSLoRAGate(_LocalPlusShared):
    """W = X Y^H + sum_k u_k (v_k^T P_k Q_k^H w_k) z_k^H: Bi-Share LoRA with gates around its shared pairs.

    Parameters
    ----------
    left, right : arrays (..., m, r) and (..., n, r)
        X and Y, of the module.
    rows_layer, cols_layer, tall_layer, wide_layer : arrays (..., m), (..., n), (..., M) and (..., N)
        u, z, v and w, the gates of the pair that the modules of a layer share.
    left_layer, right_layer : arrays (..., M, r) and (..., N, r)
        P and Q, that pair.
    rows_model, cols_model, tall_model, wide_model, left_model, right_model : arrays
        The same for the pair that all layers share.

    Notes
    -----
    With gates of width one, as the source has them, what a shared pair adds is a matrix of rank one whatever the
    number of parameters, ``m + n + M + N`` for the gates of a pair. ``BSLoRAGate.of(M, N)`` is the form with shared
    factors of that size; `BSLoRAGate` itself takes those of the module. The factor 2 of the published method is left
    to the scale. Source: :cite:`zhou2025bslora`; equation (29) of :cite:`he2026unified` with its G_io read as G_iu.

    Examples
    --------
    >>> BSLoRAGate.of(8, 9).parameter_count((6, 5), 1)
    101
    """

    left: Array
    right: Array
    rows_layer: Array
    cols_layer: Array
    tall_layer: Array
    wide_layer: Array
    left_layer: Array
    right_layer: Array
    rows_model: Array
    cols_model: Array
    tall_model: Array
    wide_model: Array
    left_model: Array
    right_model: Array

    ndims = (2, 2, *(1, 1, 1, 1, 2, 2) * 2)
    zeros = ("right", "cols_layer", "cols_model")
    term = _Gated

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), (tall, wide) = shape, cls.settings or shape
        shared = (m,), (n,), (tall,), (wide,), (tall, rank), (wide, rank)
        return ((m, rank), (n, rank), *shared, *shared)

    @classmethod
    def constants(cls, shape, rank, rng, batch):
        """Positive shared pairs between positive gates, whose scalars stay away from zero, where nothing could move."""
        form = cls.for_shape(shape)
        inner = [name for name in form.names if name.startswith(("tall", "wide", "left_", "right_"))]
        shapes = dict(zip(form.names, form.shapes(shape, rank), strict=True))
        return {name: abs(rng.standard_normal((*batch, *shapes[name]))) for name in inner}


@covers("P64")
@factorization
class BSLoRAKronecker(_LocalPlusShared):
    """W = X Y^H + sum_k (a_k (x) P_k) (b_k (x) Q_k)^H: Bi-Share LoRA whose shared pairs are repeated with weights.

    Parameters
    ----------
    left, right : arrays (..., m, r) and (..., n, r)
        X and Y, of the module.
    rows_layer, cols_layer : arrays (..., m / M) and (..., n / N)
        a and b, of the module, for the pair that the modules of a layer share.
    left_layer, right_layer : arrays (..., M, r) and (..., N, r)
        P and Q, that pair.
    rows_model, cols_model, left_model, right_model : arrays
        The same for the pair that all layers share.

    Notes
    -----
    ``(a (x) P) (b (x) Q)^H = (a b^H) (x) (P Q^H)``, of rank r at most. ``BSLoRAKronecker.of(M, N)`` is the form with
    shared factors of that size, which must divide the sides of the module; `BSLoRAKronecker` itself takes halves where
    sides are even. The factor 2 of the published method is left to the scale.
    Source: :cite:`zhou2025bslora`; equation (30) of :cite:`he2026unified`.

    Examples
    --------
    >>> BSLoRAKronecker.of(2, 5).parameter_count((6, 5), 1)
    33
    """

    left: Array
    right: Array
    rows_layer: Array
    cols_layer: Array
    left_layer: Array
    right_layer: Array
    rows_model: Array
    cols_model: Array
    left_model: Array
    right_model: Array

    ndims = (2, 2, *(1, 1, 2, 2) * 2)
    zeros = ("right", "cols_layer", "cols_model")
    term = _Stretched

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), (tall, wide) = shape, cls.settings or (k // 2 if k % 2 == 0 else k for k in shape)
        if m % tall or n % wide:
            raise ValueError(f"shared factors of {tall} x {wide} must divide the sides, got the shape {tuple(shape)}")
        shared = (m // tall,), (n // wide,), (tall, rank), (wide, rank)
        return ((m, rank), (n, rank), *shared, *shared)
