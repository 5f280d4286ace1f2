"""Forms whose matrix is a product of two thin sides, each made from some of the arrays."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from .. import xp
from ..factors import ByFactor, Configured, MatrixFactors
from ..spaces import FIXED
from .bm import BurerMonteiro, sampled_product

__all__ = [
    "Arraywise",
    "FixedSide",
    "OfShape",
    "SideBySide",
    "Sided",
    "SidedSum",
    "Thin",
    "Unconvertible",
    "divide",
    "shape_of",
    "zeros",
]

Array = Any


def zeros(array: Array) -> Array:
    """Zeros like an array: the gradient in one that does not move."""
    return xp.namespace(array).zeros_like(array)


def divide(g: Array, weights: Array, damping: Any = 0.0, ndim: int = 1) -> Array:
    """``g / (weights + damping)`` with weights of at least zero, and a floor where both vanish.

    ``ndim`` is the number of core axes of ``g``.
    """
    backend = xp.namespace(g)
    shifted = weights + xp.expand(damping, ndim)
    tiny = float(backend.finfo(g.dtype).tiny) ** 0.5
    return g / (shifted + tiny)


def shape_of(form: type[Configured]) -> tuple[int, int]:
    """The shape in the settings of a form."""
    if not form.settings:
        raise TypeError(f"{form.__name__} has no shape; points belong to {form.__name__}.for_shape((m, n))")
    return form.settings


class OfShape(Configured):
    """A form whose shape is a setting, because its arrays do not tell it."""

    @classmethod
    def for_shape(cls, shape):
        m, n = (int(k) for k in shape)
        return cls.configured(f"{cls._base().__name__}{m}x{n}", m, n)

    @property
    def shape(self):
        return shape_of(type(self))


class Unconvertible(MatrixFactors):
    """A form that cannot be asked for a given matrix: its nearest point has no closed form."""

    converts = False
    universal = False

    @classmethod
    def from_product(cls, left, right, rank=None):
        raise TypeError(
            f"{cls.__name__} has no conversion from a matrix, because its nearest point has no closed form; "
            f"start from {cls.__name__}.random(shape, size, rng) or lr.inits.gaussian, and fit it with lr.solve"
        )


class Arraywise(ByFactor, MatrixFactors):
    """Forms that give the whitened gradient array by array; nothing happens in fixed arrays."""

    @abstractmethod
    def _white(self, index: int, g: Array, damping: Any) -> Array:
        """``(D_i F^* D_i F + damping)^{-1} g`` for an array that moves."""

    def whiten(self, grad, damping=0.0):
        pairs = enumerate(zip(self.spaces, grad.arrays(), strict=True))
        return type(self)(*[zeros(g) if space is FIXED else self._white(i, g, damping) for i, (space, g) in pairs])


class Thin(MatrixFactors):
    """``L R^H`` with thin sides ``(L, R) = product()``, through which everything else goes."""

    thin = True

    def dense(self):
        left, right = self.product()
        return left @ xp.adjoint(right)

    def apply(self, x):
        left, right = self.product()
        return (x @ right.conj()) @ left.mT

    def entries(self, rows, cols):
        return sampled_product(*self.product(), rows, cols)


class Sided(Thin, Arraywise):
    """``L R^H`` with ``(L, R) = product()``; ``sides`` says to which side every array belongs, 0 or 1."""

    sides: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def _chained(self, index: int, cotangent: Array) -> Array:
        """Gradient of the array number ``index`` from that of its side."""

    def partial(self, index, g):
        if self.spaces[index] is FIXED:
            return zeros(self.arrays()[index])
        left, right = self.product()
        return self._chained(index, g @ right if self.sides[index] == 0 else xp.adjoint(g) @ left)

    def pullback(self, g):
        left, right = self.product()
        moving = {side for side, space in zip(self.sides, self.spaces, strict=True) if space is not FIXED}
        cotangents = g @ right if 0 in moving else None, xp.adjoint(g) @ left if 1 in moving else None
        parts = enumerate(zip(self.sides, self.spaces, self.arrays(), strict=True))
        return type(self)(
            *[zeros(a) if space is FIXED else self._chained(i, cotangents[k]) for i, (k, space, a) in parts]
        )


class FixedSide(MatrixFactors):
    """A form ``L R^H`` with one side fixed, the one with the number ``fixed_side``.

    Where a few numbers stand between two fixed sides, ``product`` may put them on either.
    """

    @property
    @abstractmethod
    def fixed_side(self) -> int:
        """0 where the left side is fixed, 1 where the right one is."""

    @abstractmethod
    def fixed(self) -> Array:
        """This side, from fixed arrays alone: no copy of what is large."""

    @abstractmethod
    def moving(self) -> Array:
        """The other one."""

    @abstractmethod
    def pull_moving(self, cotangent: Array) -> tuple[Array | None, ...]:
        """Gradients of the arrays, in their order, from that of the moving side; None for fixed arrays."""


class SidedSum(Sided):
    """A `Sided` form that is not linear in single arrays, because other columns stand beside them."""

    @abstractmethod
    def _orders(self, direction: Any) -> tuple[list[Array], list[Array]]:
        """Taylor coefficients of both sides along a direction, from the constant one on."""

    def expansion(self, direction, wrt):
        pairs = enumerate(direction.arrays())
        lefts, rights = self._orders(type(self)(*[d if i in wrt else 0 * d for i, d in pairs]))
        orders: list[list[Any]] = [[] for _ in range(len(lefts) + len(rights) - 2)]
        for i, left in enumerate(lefts):
            for j, right in enumerate(rights):
                if i + j:
                    orders[i + j - 1].append(BurerMonteiro(left, right))
        return orders


class SideBySide(SidedSum):
    """``L diag(d) R^H`` where the columns of L and R are those of several arrays side by side; d may be missing."""

    @abstractmethod
    def side_by_side(self) -> tuple[Array, Array]:
        """L (..., m, r) and R (..., n, r), without d."""

    @property
    @abstractmethod
    def weights(self) -> Array | None:
        """d (..., r), or None for ones."""

    @abstractmethod
    def take_apart(self, of_left: Array, of_right: Array, of_weights: Array | None) -> tuple[Array, ...]:
        """Gradients of the arrays, in their order, from those of L, R and d."""
