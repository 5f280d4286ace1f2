"""Forms over fixed random bases: their combinations (NoLA), and sums of scaled ones (RandLoRA)."""

from __future__ import annotations

from math import ceil
from typing import Any

from .. import xp
from ..coverage import covers
from ..factors import Configured, Multilinear, factorization
from ..spaces import FIXED, FLAT
from .sided import FixedSide, Sided, Unconvertible

__all__ = ["NoLA", "RandLoRA"]

Array = Any


@covers("P68")
@factorization
class NoLA(Sided, Multilinear, Unconvertible, Configured):
    """W = (sum_k a_k A_k)(sum_k b_k B_k)^H with fixed random A_k and B_k.

    Parameters
    ----------
    left : array (..., K)
        a; it vanishes at the start.
    left_bases : array (..., K, m, r)
        A_k, fixed.
    right : array (..., K)
        b.
    right_bases : array (..., K, n, r)
        B_k, fixed.

    Notes
    -----
    The size of this form is the number of terms K; the rank r belongs to the form, 2 for `NoLA` itself and
    another one for ``NoLA.of(r)``. Equation (11) of :cite:`survey2026sp` lacks the transposition.
    Source: :cite:`koohpayegani2024nola`.

    Examples
    --------
    >>> NoLA.of(4).parameter_count((6, 5), 3)
    6
    """

    left: Array
    left_bases: Array
    right: Array
    right_bases: Array

    ndims = (1, 3, 1, 3)
    spaces = (FLAT, FIXED, FLAT, FIXED)
    sides = (0, 0, 1, 1)
    zeros = ("left",)

    @classmethod
    def of(cls, rank: int) -> type[NoLA]:
        """The form with matrices of this rank."""
        if int(rank) != rank or rank < 1:
            raise ValueError(f"rank must be a positive integer, got {rank}")
        return cls.configured(f"NoLA{int(rank)}", int(rank))

    @property
    def shape(self):
        return self.left_bases.shape[-2], self.right_bases.shape[-2]

    @property
    def rank(self):
        return min(self.left_bases.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        (r,) = cls.settings or (2,)
        if r > min(shape):
            raise ValueError(f"the rank {r} of this form does not fit the shape {tuple(shape)}; take a NoLA.of(rank)")
        return (rank,), (rank, shape[0], r), (rank,), (rank, shape[1], r)

    def product(self):
        return _combined(self.left, self.left_bases), _combined(self.right, self.right_bases)

    def _chained(self, index, cotangent):
        return (self.arrays()[index + 1].conj() * cotangent[..., None, :, :]).sum((-2, -1))

    def _white(self, index, g, damping):
        sides, bases = self.product(), self.arrays()[index + 1]
        weighted = bases @ xp.gram(sides[0 if index else 1])[..., None, :, :]
        flat = [a.reshape(*a.shape[:-2], -1) for a in (bases, weighted)]
        return xp.solve_psd(flat[0].conj() @ flat[1].mT, g[..., None], damping)[..., 0]


def _combined(weights: Array, bases: Array) -> Array:
    """``sum_k weights_k bases_k``: one product with every basis as a row."""
    flat = weights[..., None, :] @ bases.reshape(*bases.shape[:-2], -1)
    return flat.reshape(*weights.shape[:-1], *bases.shape[-2:])


@covers("P53")
@factorization
class RandLoRA(Sided, FixedSide, Multilinear, Unconvertible, Configured):
    """W = sum_i diag(g_i) A diag(d_i) B_i^H with fixed random A and B_i, or its transpose unless W is wide.

    Parameters
    ----------
    scales : array (..., N, s)
        g_i, with s the smaller side of the matrix; they vanish at the start.
    values : array (..., N, r)
        d_i.
    shared : array (..., s, r)
        A, fixed and the same in all terms.
    bases : array (..., l, N, r)
        B_i, fixed, with l the larger side; so laid out that side by side they are no copy.

    Notes
    -----
    The size of this form is the rank r of a basis. There are ``N = ceil(min(s, limit) / r)`` of them, so that W
    can have the rank min(s, limit); ``RandLoRA.of(limit)`` is the form with a limit, and the parameters are ``N
    (s + r)``; the published code takes one N for all layers, that of the largest. A matrix with no fewer rows than
    columns has the transposed form, so that the long vectors are the fixed ones, as in the published code. The
    factor ``2 / sqrt(N)`` of the published method is left to the scale of the adapter. Applied through one thin
    side of N r columns: no array of N outputs is formed.
    Source: :cite:`albert2025randlora`; equations (31) and (32) of :cite:`he2026unified`.

    Examples
    --------
    >>> RandLoRA.parameter_count((6, 8), 2)
    24
    """

    scales: Array
    values: Array
    shared: Array
    bases: Array

    ndims = (2, 2, 2, 3)
    spaces = (FLAT, FLAT, FIXED, FIXED)
    zeros = ("scales",)

    @classmethod
    def of(cls, limit: int) -> type[RandLoRA]:
        """The form whose bases together have at most this rank."""
        if int(limit) != limit or limit < 1:
            raise ValueError(f"limit must be a positive integer, got {limit}")
        return cls._oriented(int(limit), False)

    @classmethod
    def _oriented(cls, limit: int | None, tall: bool) -> type[RandLoRA]:
        name = f"RandLoRA{limit or ''}{'Tall' if tall else ''}"
        return cls.configured(name, limit, tall) if limit or tall else cls._base()

    @classmethod
    def for_shape(cls, shape):
        limit = cls.settings[0] if cls.settings else None
        return cls._oriented(limit, shape[0] >= shape[1])

    @property
    def _tall(self) -> bool:
        return bool(self.settings and self.settings[1])

    @property
    def sides(self):
        side = int(self._tall)
        return side, side, side, 1 - side

    @property
    def shape(self):
        small, large = self.scales.shape[-1], self.bases.shape[-3]
        return (large, small) if self._tall else (small, large)

    @property
    def rank(self):
        return min(self.values.shape[-2] * self.values.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        limit = cls.settings[0] if cls.settings else None
        small, large = sorted(shape)
        if rank > small:
            raise ValueError(f"bases of a {shape[0]} x {shape[1]} matrix have rank at most {small}, got {rank}")
        count = ceil(min(small, limit or small) / rank)
        return (count, small), (count, rank), (small, rank), (large, count, rank)

    def product(self):
        return (self.fixed(), self.moving()) if self._tall else (self.moving(), self.fixed())

    @property
    def fixed_side(self):
        return int(not self._tall)

    def fixed(self):
        return _flat(self.bases)

    def moving(self):
        return self._terms(self.scales, self.values)

    def _terms(self, scales: Array | None, values: Array | None) -> Array:
        """diag(g_i) A diag(d_i) for all i, side by side: (..., s, N r); None stands for ones."""
        terms = self.shared[..., :, None, :]
        terms = terms if values is None else terms * values[..., None, :, :]
        return _flat(terms if scales is None else terms * scales.mT[..., None])

    def pull_moving(self, cotangent):
        parts = self._parts(cotangent)
        return self._pulled(0, parts), self._pulled(1, parts), None, None

    def _chained(self, index, cotangent):
        return self._pulled(index, self._parts(cotangent))

    def _parts(self, cotangent: Array) -> Array:
        """Times A, term by term: (..., s, N, r)."""
        return self.shared.conj()[..., :, None, :] * cotangent.reshape(*cotangent.shape[:-1], *self.values.shape[-2:])

    def _pulled(self, index: int, parts: Array) -> Array:
        """Sums with the other array; of the long axis as a product, which forms nothing of the size of the parts."""
        if index == 0:
            return xp.namespace(parts).linalg.vecdot(self.values[..., None, :, :], parts).mT
        return (self.scales.conj()[..., :, None, :] @ parts.swapaxes(-3, -2))[..., 0, :]

    def _white(self, index, g, damping):
        gram = xp.gram(self.fixed())
        if index == 1:
            terms = self._terms(self.scales, None)
            normal = xp.gram(terms) * gram.mT
            return xp.solve_psd(normal, g.reshape(*g.shape[:-2], -1, 1), damping).reshape(g.shape)
        count, r = self.values.shape[-2:]
        gram = gram.reshape(*gram.shape[:-2], count, r, count, r)
        rows = self.shared[..., None, :, :] * self.values[..., :, None, :]
        normal = xp.namespace(g).einsum("...iar,...irjs,...jas->...aij", rows, gram, rows.conj())
        return xp.solve_psd(normal.conj(), g.mT[..., None], xp.expand(damping, 1))[..., 0].mT


def _flat(blocks: Array) -> Array:
    """(..., k, N, r) to (..., k, N r)."""
    return blocks.reshape(*blocks.shape[:-2], -1)
