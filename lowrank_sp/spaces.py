"""Where a factor lives: tangent projection, retraction and transport of flat, Stiefel and fixed factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from . import xp

__all__ = ["FIXED", "FLAT", "SPACES", "STIEFEL", "STIEFEL_QR", "Fixed", "Flat", "Space", "Stiefel", "StiefelQR"]

Array = Any


class Space(ABC):
    """A smooth set of matrices ``(..., m, r)`` with the Euclidean metric.

    ``linear`` says that straight lines along tangent vectors stay in it.
    """

    linear: ClassVar[bool] = False

    @abstractmethod
    def project(self, x: Array, g: Array) -> Array:
        """Orthogonal projection of the ambient vector ``g`` on the tangent space at ``x``."""

    @abstractmethod
    def retract(self, x: Array, direction: Array, lr: Any) -> Array:
        """A point of the space that agrees with ``x - lr * project(x, direction)`` to first order."""

    @abstractmethod
    def random(self, rng: Any, shape: tuple[int, ...]) -> Any:
        """A NumPy point of the space drawn from its natural distribution."""

    def transport(self, new: Array, v: Array) -> Array:
        """Carry the tangent vector ``v`` to the point ``new`` by projection."""
        return self.project(new, v)


@dataclass(frozen=True)
class Flat(Space):
    """All matrices (or vectors) of a shape."""

    linear = True

    def project(self, x, g):
        return g

    def retract(self, x, direction, lr):
        return x - lr * direction

    def random(self, rng, shape):
        return rng.standard_normal(shape)


@dataclass(frozen=True)
class Fixed(Space):
    """One point alone: an array that a form carries but nothing moves, such as a random basis or an index.

    The tangent space is {0}: tangent vectors and gradients hold zeros there. Integer arrays keep their type.
    """

    linear = True

    def project(self, x, g):
        return xp.namespace(g).zeros_like(g)

    def retract(self, x, direction, lr):
        return x

    def random(self, rng, shape):
        return rng.standard_normal(shape)


def _sym_part(x: Array, g: Array) -> Array:
    xg = xp.cross(x, g)
    return (xg + xp.adjoint(xg)) / 2


@dataclass(frozen=True)
class Stiefel(Space):
    """Matrices with orthonormal columns, ``x^H x = I``, with the polar retraction.

    ``project``: ``g - x sym(x^H g)``. ``retract``: ``(x - lr e)(I + lr^2 e^H e)^{-1/2}`` with the tangent
    ``e``; the Gram matrix is computed from the step itself, so rounding does not accumulate.
    Source: :cite:`absil2008book`; the update of :cite:`lion2025polar`.
    """

    def project(self, x, g):
        return xp.add_times(g, x, -_sym_part(x, g))

    def retract(self, x, direction, lr):
        y = x - lr * self.project(x, direction)
        return xp.times(y, xp.power_psd(xp.gram(y), -0.5))

    def random(self, rng, shape):
        return xp.polar(rng.standard_normal(shape))


@dataclass(frozen=True)
class StiefelQR(Space):
    """The Stiefel manifold with the QR retraction (Q factor, columns signed)."""

    def project(self, x, g):
        return xp.add_times(g, x, -_sym_part(x, g))

    def retract(self, x, direction, lr):
        return xp.orthonormalize(x - lr * self.project(x, direction))

    def random(self, rng, shape):
        return xp.orthonormalize(rng.standard_normal(shape))


FLAT = Flat()
FIXED = Fixed()
STIEFEL = Stiefel()
STIEFEL_QR = StiefelQR()
SPACES: dict[str, Space] = {"flat": FLAT, "fixed": FIXED, "stiefel": STIEFEL, "stiefel_qr": STIEFEL_QR}
