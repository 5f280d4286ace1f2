"""Low-rank factors of a layer beside factors that it shares with others: RaSA and BSLoRA."""

from __future__ import annotations

from typing import Any

from .. import xp
from ..coverage import covers
from ..factors import Configured, factorization
from .bm import resized
from .outer import Outer
from .sided import SideBySide

__all__ = ["BSLoRA", "RaSA"]

Array = Any


def _beside(*columns: Array) -> Array:
    return xp.namespace(*columns).concatenate(columns, -1)


def _extended(a: Array, size: int) -> Array:
    """A matrix with zero rows below, ``size`` in all."""
    backend, missing = xp.namespace(a), size - a.shape[-2]
    zero = backend.zeros_like(a[..., :1, :])
    return backend.concatenate((a, *[zero] * missing), -2) if missing else a


@covers("P63")
@factorization
class RaSA(SideBySide, Configured, Outer):
    """W = [B_L, B_S] diag(d) [A_L, A_S]^H with the pools B_S and A_S that all layers of a type share.

    Parameters
    ----------
    left, right : arrays (..., m, r - k) and (..., n, r - k)
        B_L and A_L, of the layer.
    left_pool, right_pool : arrays (..., m, L k) and (..., n, L k)
        B_S and A_S.
    values : array (..., r - k + L k)
        d, of the layer; it vanishes at the start.

    Notes
    -----
    Of r ranks every one of L layers gives k to the pool, so that the factors of all layers together have the
    numbers of a LoRA and every layer has the rank ``r - k + L k``. The size of this form is r;
    ``RaSA.of(k, L)`` is the form for other numbers than one of two layers. To share the pools is up to whoever
    holds the arrays. Source: :cite:`he2025rasa`; equation (27) of :cite:`he2026unified`.

    Examples
    --------
    >>> import numpy as np
    >>> RaSA.of(1, 3).random((9, 8), 2, np.random.default_rng(0)).rank
    4
    """

    left: Array
    right: Array
    left_pool: Array
    right_pool: Array
    values: Array

    ndims = (2, 2, 2, 2, 1)
    sides = (0, 1, 0, 1, 0)
    zeros = ("values",)

    @classmethod
    def of(cls, pooled: int, layers: int) -> type[RaSA]:
        """The form of ``layers`` layers that give ``pooled`` of their ranks each."""
        for name, k in (("pooled", pooled), ("layers", layers)):
            if int(k) != k or k < 1:
                raise ValueError(f"{name} must be a positive integer, got {k}")
        return cls.configured(f"RaSA{int(pooled)}of{int(layers)}", int(pooled), int(layers))

    @property
    def rank(self):
        return min(self.values.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        pooled, layers = cls.settings or (1, 2)
        own, pool = rank - pooled, pooled * layers
        if own < 1:
            raise ValueError(f"{pooled} of the ranks of a layer belong to the pool, so it needs more than {rank}")
        return (shape[0], own), (shape[1], own), (shape[0], pool), (shape[1], pool), (own + pool,)

    @classmethod
    def from_product(cls, left, right, rank=None):
        """The leading components in the pool, which has the more columns; ones as values."""
        pooled, layers = cls.settings or (1, 2)
        total = (left.shape[-1] if rank is None else rank) - pooled + pooled * layers
        left, right = resized(left, right, total)
        pool, ones = pooled * layers, xp.namespace(left, right).ones_like(left[..., 0, :])
        return cls(left[..., pool:], right[..., pool:], left[..., :pool], right[..., :pool], ones)

    @property
    def weights(self):
        return self.values

    def side_by_side(self):
        return _beside(self.left, self.left_pool), _beside(self.right, self.right_pool)

    def take_apart(self, of_left, of_right, of_weights):
        own, pool = self._columns(0), self._columns(2)
        return of_left[..., own], of_right[..., own], of_left[..., pool], of_right[..., pool], of_weights

    def product(self):
        # Scaled before they are put side by side, so that autograd keeps no array of this size but the results.
        own, row = self.left.shape[-1], self.values[..., None, :]
        left = _beside(self.left * row[..., :own], self.left_pool * row[..., own:])
        return left, _beside(self.right, self.right_pool)

    def _orders(self, direction):
        (left, right), (dl, dr) = self.side_by_side(), direction.side_by_side()
        row, move = self.values[..., None, :], direction.values[..., None, :]
        return [left * row, dl * row + left * move, dl * move], [right, dr]

    def _columns(self, index: int) -> slice:
        """The columns of its side that an array has."""
        own = self.left.shape[-1]
        return slice(0, own) if index < 2 else slice(own, None)

    def _chained(self, index, cotangent):
        if index == 4:
            return (self.side_by_side()[0].conj() * cotangent).sum(-2)
        scaled = cotangent if self.sides[index] else cotangent * self.values.conj()[..., None, :]
        return scaled[..., self._columns(index)]

    def _white(self, index, g, damping):
        left, right = self.side_by_side()
        if index == 4:
            return xp.solve_psd(xp.gram(left) * xp.gram(right).mT, g[..., None], damping)[..., 0]
        other = self.product()[0] if self.sides[index] else right * self.values.conj()[..., None, :]
        return xp.divide_psd(g, xp.gram(other[..., self._columns(index)]), damping)


@covers("P64")
@factorization
class BSLoRA(SideBySide, Configured, Outer):
    """W = X Y^H + (P Q^H)[:m, :n] + (S T^H)[:m, :n]: local, intra-layer and inter-layer factors of Bi-Share LoRA.

    Parameters
    ----------
    left, right : arrays (..., m, r) and (..., n, r)
        X and Y, of the module.
    left_layer, right_layer : arrays (..., M, r) and (..., N, r)
        P and Q, which the modules of a layer share; M >= m and N >= n.
    left_model, right_model : arrays (..., M, r) and (..., N, r)
        S and T, which all layers share.

    Notes
    -----
    Shared factors are cut to the size of the module, one of the three published shape transforms; the others are
    `BSLoRAGate` and `BSLoRAKronecker`. Rows of shared factors beyond the module have no gradient and do not move.
    ``BSLoRA.of(M, N)`` is the form with shared factors of that size; `BSLoRA` itself takes those of the module.
    The factor 2 of the published method is left to the scale. To share is up to whoever
    holds the arrays. Source: :cite:`zhou2025bslora`; equations (28)-(30) of :cite:`he2026unified`.

    Examples
    --------
    >>> import numpy as np
    >>> BSLoRA.of(8, 9).parameter_count((6, 5), 1)
    45
    """

    left: Array
    right: Array
    left_layer: Array
    right_layer: Array
    left_model: Array
    right_model: Array

    sides = (0, 1, 0, 1, 0, 1)
    zeros = ("right", "right_layer", "right_model")

    @classmethod
    def of(cls, rows: int, cols: int) -> type[BSLoRA]:
        """The form whose shared factors have so many rows and columns of W."""
        if int(rows) != rows or int(cols) != cols or min(rows, cols) < 1:
            raise ValueError(f"rows and cols must be positive integers, got {rows}, {cols}")
        return cls.configured(f"BSLoRA{int(rows)}x{int(cols)}", int(rows), int(cols))

    @property
    def rank(self):
        return min(sum(a.shape[-1] for a in self.arrays()[::2]), *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        large = cls.settings or shape
        if large[0] < shape[0] or large[1] < shape[1]:
            raise ValueError(f"shared factors of {large[0]} x {large[1]} do not cover the shape {tuple(shape)}")
        shared = (large[0], rank), (large[1], rank)
        return ((shape[0], rank), (shape[1], rank), *shared, *shared)

    @classmethod
    def from_product(cls, left, right, rank=None):
        """The local factors; the shared ones have zero right factors and the columns of the left ones."""
        left, right = resized(left, right, rank)
        large = cls.settings or (left.shape[-2], right.shape[-2])
        tall, wide = _extended(left, large[0]), 0 * _extended(right, large[1])
        return cls(left, right, tall, wide, tall, wide)

    @property
    def weights(self):
        return None

    def product(self):
        return self.side_by_side()

    def side_by_side(self):
        (m, n), arrays = self.shape, self.arrays()
        return _beside(*[a[..., :m, :] for a in arrays[::2]]), _beside(*[a[..., :n, :] for a in arrays[1::2]])

    def take_apart(self, of_left, of_right, of_weights):
        sides = of_left, of_right
        return tuple(self._chained(index, sides[index % 2]) for index in range(len(self.names)))

    def _orders(self, direction):
        pairs = zip(self.product(), direction.product(), strict=True)
        return tuple(list(pair) for pair in pairs)

    def _columns(self, index: int) -> slice:
        start = sum(a.shape[-1] for a in self.arrays()[index % 2 : index : 2])
        return slice(start, start + self.arrays()[index].shape[-1])

    def _chained(self, index, cotangent):
        part, array = cotangent[..., self._columns(index)], self.arrays()[index]
        return _extended(part, array.shape[-2])

    def _white(self, index, g, damping):
        size, columns = self.shape[index % 2], self._columns(index)
        other = self.product()[1 - index % 2][..., columns]
        return _extended(xp.divide_psd(g[..., :size, :], xp.gram(other), damping), g.shape[-2])
