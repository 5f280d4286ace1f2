"""A scalar function of every entry of a low-rank matrix: SineLoRA and the weight form of LoRAN."""

from __future__ import annotations

import sys
from abc import abstractmethod
from typing import Any, ClassVar

from .. import xp
from ..constants import identity
from ..coverage import covers
from ..factors import ByFactor, Configured, factorization
from ..rearrange import is_array
from .bm import BurerMonteiro, whole_product
from .sided import Unconvertible

__all__ = ["Elementwise", "Sine", "Sinter"]

Array = Any


class Elementwise(ByFactor, Unconvertible, Configured):
    """``phi(X Y^H)`` with ``phi(z) = gain * bend(frequency * z)``, entry by entry, for two numbers of its own.

    ``bend`` and its derivative take ``sin(u)`` besides ``u``, because both need it and sines cost more than products.
    """

    left: Array
    right: Array

    polynomial = False
    defaults: ClassVar[tuple[float, float]]

    @classmethod
    def of(cls, first: float, second: float) -> Any:
        """The form with other numbers."""
        if not (first > 0 and second > 0):
            raise ValueError(f"both numbers of {cls._base().__name__} must be positive, got {first}, {second}")
        return cls.configured(f"{cls._base().__name__}({first:g},{second:g})", float(first), float(second))

    @property
    def numbers(self) -> tuple[float, float]:
        return type(self).settings or self.defaults

    @property
    @abstractmethod
    def frequency(self) -> float:
        """What X Y^H is multiplied by before it is bent."""

    @property
    @abstractmethod
    def gain(self) -> float:
        """What it is multiplied by after."""

    @abstractmethod
    def bend(self, u: Array, sine: Array) -> Array:
        """The function of every number, from the number and its sine; neither array is changed."""

    @abstractmethod
    def bent(self, g: Array, u: Array, sine: Array) -> Array:
        """``g`` times the derivative of `bend` at every number."""

    @property
    @abstractmethod
    def slope(self) -> float:
        """The derivative of phi at zero, which ``whiten`` takes for that of every entry."""

    def _values(self, z: Array) -> Array:
        """phi of every number."""
        u = self.frequency * z
        return self.gain * self.bend(u, xp.namespace(u).sin(u))

    def _sloped(self, g: Array, z: Array) -> Array:
        """``g`` times the derivative of phi at every number."""
        u = self.frequency * z
        return self.bent(self.gain * self.frequency * g, u, xp.namespace(u).sin(u))

    @property
    def _inside(self) -> BurerMonteiro:
        return BurerMonteiro(self.left, self.right)

    @property
    def shape(self):
        return self._inside.shape

    @property
    def rank(self):
        return min(self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return BurerMonteiro.shapes(shape, rank)

    def product(self):
        return whole_product(self)

    def dense(self):
        return self._values(self._inside.dense())

    def apply(self, x):
        return x @ self.dense().mT

    def entries(self, rows, cols):
        return self._values(self._inside.entries(rows, cols))

    def _weighted(self, g: Any) -> Array:
        """A gradient times the slopes."""
        eye = xp.namespace(self.left).eye(self.shape[1])
        whole = g if is_array(g) else g @ xp.asarray_like(eye, self.left)
        return self._sloped(whole, self._inside.dense().conj())

    def partial(self, index, g):
        return self._inside.partial(index, self._weighted(g))

    def pullback(self, g):
        return type(self)(*self._inside.pullback(self._weighted(g)).arrays())

    def whiten(self, grad, damping=0.0):
        square = self.slope**2
        white = self._inside.whiten(BurerMonteiro(*grad.arrays()), damping / square)
        return type(self)(*white.scale(1.0 / square).arrays())

    def expansion(self, direction, wrt):
        pairs = enumerate(direction.arrays())
        moved = self._inside.pushforward(BurerMonteiro(*[d if i in wrt else 0 * d for i, d in pairs]))
        eye = identity(self.shape[1], moved)
        return [[BurerMonteiro(self._sloped(moved, self._inside.dense()), eye + 0 * moved[..., :1, :1])]]


@covers("P103")
@factorization
class Sine(Elementwise):
    """W = sin(omega X Y^H) / g entry by entry: SineLoRA.

    Parameters
    ----------
    left, right : arrays (..., m, r) and (..., n, r)
        X and Y.

    Notes
    -----
    ``Sine.of(omega, g)`` is the form with other numbers than 1 and 1. The rank can be full, and every use forms the
    m x n matrix. ``whiten`` is that of X Y^H with the slope omega / g at zero. The surveys only name the method;
    some public code applies the sine to the output of the adapter instead, which is not linear in its input.
    Source: :cite:`ji2024sine`.

    Examples
    --------
    >>> import numpy as np
    >>> Sine.of(np.pi / 2, 2.0)(np.ones((1, 1)), np.ones((1, 1))).dense().tolist()
    [[0.5]]
    """

    left: Array
    right: Array

    defaults = (1.0, 1.0)

    @property
    def frequency(self):
        return self.numbers[0]

    @property
    def gain(self):
        return 1.0 / self.numbers[1]

    @property
    def slope(self):
        return self.numbers[0] / self.numbers[1]

    def bend(self, u, sine):
        return sine

    def bent(self, g, u, sine):
        return g * xp.namespace(u).cos(u)


@covers("P104")
@factorization
class Sinter(Elementwise):
    """W = a sin(omega Z) Z + Z entry by entry, with Z = X Y^H: the weight form of LoRAN.

    Parameters
    ----------
    left, right : arrays (..., m, r) and (..., n, r)
        X and Y.

    Notes
    -----
    ``Sinter.of(a, omega)`` is the form with other numbers than 1 and 1. Costs and ``whiten`` as for `Sine`; the slope
    at zero is 1. Public code applies the function to the output of the adapter instead, which is another method.
    Source: :cite:`li2024loran`, which the surveys only name.

    Examples
    --------
    >>> import numpy as np
    >>> Sinter.of(2.0, np.pi / 2)(np.ones((1, 1)), np.ones((1, 1))).dense().tolist()
    [[3.0]]
    """

    left: Array
    right: Array

    defaults = (1.0, 1.0)

    @property
    def frequency(self):
        return self.numbers[1]

    @property
    def gain(self):
        return 1.0 / self.numbers[1]

    @property
    def slope(self):
        return 1.0

    def bend(self, u, sine):
        return _plus_product(u, sine, u, self.numbers[0])

    def bent(self, g, u, sine):
        derivative = _plus_product(sine, u, xp.namespace(u).cos(u), 1.0)  # of u sin(u)
        return _plus_product(g, g, derivative, self.numbers[0])


def _plus_product(a: Array, b: Array, c: Array, weight: float) -> Array:
    """``a + weight b c`` entry by entry, in one pass where the library has one."""
    if xp.is_torch(a):
        return sys.modules["torch"].addcmul(a, b, c, value=weight)
    return a + weight * b * c
