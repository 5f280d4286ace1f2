"""Kronecker products of a full factor and one of low rank, in either order: LoKr."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import xp
from ..coverage import covers
from ..factors import Configured, Gauged, Multilinear, factorization
from .bm import BurerMonteiro, whole_product
from .channels import Channels
from .kronecker import Kronecker, largest_divisor
from .sided import Arraywise, Unconvertible, divide

__all__ = ["LoKr", "LoKrSmall"]

Array = Any


class _LowRankFactor(Arraywise, Multilinear, Unconvertible, Configured, Gauged):
    """A Kronecker product of a full matrix C and ``X Y^H``; ``place`` says which comes first."""

    full: Array
    left: Array
    right: Array

    ndims = (2, 2, 2)
    place: ClassVar[int] = 0  # of the full factor

    @classmethod
    def of(cls, most: int) -> Any:
        """The form whose first factor has sides of at most ``most``."""
        if int(most) != most or most < 1:
            raise ValueError(f"most must be a positive integer, got {most}")
        return cls.configured(f"{cls._base().__name__}{int(most)}", int(most))

    @classmethod
    def _sizes(cls, shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of both factors: the first has the largest divisors up to the setting and the square root."""
        most = cls.settings[0] if cls.settings else max(shape)
        a, b = (largest_divisor(k, most) for k in shape)
        return (a, b), (shape[0] // a, shape[1] // b)

    @classmethod
    def shapes(cls, shape, rank):
        sizes = cls._sizes(shape)
        full, low = sizes[cls.place], sizes[1 - cls.place]
        if rank > min(low):
            raise ValueError(f"the factor of low rank is {low[0]} x {low[1]}, its rank at most {min(low)}, got {rank}")
        return full, (low[0], rank), (low[1], rank)

    @property
    def _low(self) -> BurerMonteiro:
        return BurerMonteiro(self.left, self.right)

    @property
    def _kronecker(self) -> Kronecker:
        """The same matrix with both factors full: its parameters are fewer than those of the matrix."""
        factors = (self.full, self._low.dense()) if self.place == 0 else (self._low.dense(), self.full)
        return Kronecker(*[a[..., None, :, :] for a in factors])

    @property
    def shape(self):
        (a, b), (c, d) = self.full.shape[-2:], self._low.shape
        return a * c, b * d

    @property
    def rank(self):
        return min(*self.shape, min(self.full.shape[-2:]) * min(self.left.shape[-1], *self._low.shape))

    def product(self):
        return whole_product(self)

    def dense(self):
        return self._kronecker.dense()

    def entries(self, rows, cols):
        return self._kronecker.entries(rows, cols)

    def partial(self, index, g):
        if index == 0:
            return self._kronecker.partial(self.place, g)[..., 0, :, :]
        return self._low.partial(index - 1, self._kronecker.partial(1 - self.place, g)[..., 0, :, :])

    def pullback(self, g):
        parts = [a[..., 0, :, :] for a in self._kronecker.pullback(g).arrays()]
        return type(self)(parts[self.place], *self._low.pullback(parts[1 - self.place]).arrays())

    def _white(self, index, g, damping):
        if index == 0:
            grams = xp.gram(self.left), xp.gram(self.right)
            weight = xp.namespace(g).real((grams[0] * grams[1].mT).sum((-2, -1)))
            return divide(g, weight[..., None, None], damping, ndim=2)
        square = xp.expand(xp.inner(self.full, self.full), 2)
        return xp.divide_psd(g, square * xp.gram(self.right if index == 1 else self.left), damping)

    def gauge(self, q):
        return type(self)(self.full, *self._low.gauge(q).arrays())

    def random_gauge(self, rng):
        return self._low.random_gauge(rng)


@covers("P49", "D32")
@factorization
class LoKr(_LowRankFactor, Channels):
    """W = C (x) X Y^H: LoKr with the low rank on the large factor, as first published.

    Parameters
    ----------
    full : array (..., a, b)
        C, small.
    left, right : arrays (..., m / a, r) and (..., n / b, r)
        X and Y.

    Notes
    -----
    a and b are the largest divisors of m and n that exceed neither their square roots nor k, in
    ``LoKr.of(k)``; `LoKr` itself has no other limit. ``apply`` takes ``r (n + a b + m)`` products per row.
    The nearest matrix of this form has no closed form. Source: :cite:`yeh2024lycoris`; `LoKrSmall` is the other
    order.

    Examples
    --------
    >>> import numpy as np
    >>> LoKr(np.eye(2), np.ones((1, 1)), np.ones((2, 1))).dense().tolist()
    [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    """

    full: Array
    left: Array
    right: Array

    def narrow(self):
        return xp.adjoint(self.right)[..., None, :, :]

    def widen(self):
        return self.left[..., None, :, :]

    def mix(self, thin):
        """C on the b blocks of every row: with the channels in front, that is one product for all rows."""
        rows = thin.reshape(*thin.shape[:-3], 1, -1, self.full.shape[-1])
        return (rows @ self.full.mT[..., None, :, :]).reshape(*thin.shape[:-1], -1)


@covers("P49", "D32")
@factorization
class LoKrSmall(_LowRankFactor):
    """W = X Y^H (x) C: LoKr with the low rank on the small factor, as section II-B of the survey has it.

    Parameters
    ----------
    full : array (..., m / a, n / b)
        C, large.
    left, right : arrays (..., a, r) and (..., b, r)
        X and Y.

    Notes
    -----
    Sizes as in `LoKr`. The parameters are ``r (a + b) + (m / a) (n / b)``. Source: equations (18)-(21) of
    :cite:`he2026unified`, whose equation (18) misprints the divisor of m as that of n.

    Examples
    --------
    >>> import numpy as np
    >>> LoKrSmall(np.eye(2), np.ones((1, 1)), np.ones((1, 1))).dense().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    full: Array
    left: Array
    right: Array

    place = 1

    def apply(self, x):
        b, d = self.right.shape[-2], self.full.shape[-1]
        thin = xp.adjoint(self.right)[..., None, :, :] @ x.reshape(*x.shape[:-1], b, d)  # (..., k, r, n / b)
        half = thin.reshape(*thin.shape[:-3], -1, d) @ self.full.mT  # (..., k r, m / a)
        out = self.left[..., None, :, :] @ half.reshape(*thin.shape[:-1], self.full.shape[-2])
        return out.reshape(*out.shape[:-2], self.shape[0])
